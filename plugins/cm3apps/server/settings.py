"""The limits of the server: every number that bounds what a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold and how long it may take. Each has a test.

    Args:
        body_bytes: of a request's body.
        body_seconds: for a body to arrive.
        picture_pixels: of a picture that is sent, before it is decoded.
        pictures: that are sent with one request.
        prompt_characters: of each text. The model's own limit, in tokens, comes on top.
        number: results of one request (`n`).
        candidates: for each result.
        at_once: results and candidates that are generated at once, over all requests; also the most
            that one request may ask for (`n` times `candidates`).
        waiting: requests that wait for their turn; more are refused with 429.
        waiting_per_client: of them from one address.
        seconds: from a request's arrival to its answer.
        stuck_seconds: an engine that takes longer over one step counts as stuck.
        side: longest side of a picture that is returned.
        connections: open connections; more are refused with 503.
    """

    body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    picture_pixels: int = 16_000_000
    pictures: int = 16
    prompt_characters: int = 4000
    number: int = 10
    candidates: int = 16
    at_once: int = 32
    waiting: int = 64
    waiting_per_client: int = 32
    seconds: float = 300.0
    stuck_seconds: float = 120.0
    side: int = 2048
    connections: int = 512
