"""The limits of the server: every number that bounds what a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold and how long it may take, and what all of them together may. Each has a test.

    Args:
        body_bytes: of a request's body.
        all_body_bytes: of all bodies that are read or held; a request waits for its share.
        body_seconds: for a body to arrive, at an even pace after the first third.
        json_values: commas and opening brackets of a body of JSON; each may become a Python object.
        picture_pixels: of a picture that is sent, before it is decoded.
        all_pixels: of the pictures of one request together, and of all requests while their pictures are
            decoded. A picture that is filled counts until its request ends, and so do its results.
        pictures: that are sent with one request.
        prompt_characters: of each text. The model's own limit, in tokens, comes on top.
        number: results of one request (`n`).
        candidates: for each result.
        at_once: results and candidates that are generated at once, over all requests; also the most
            that one request may ask for (`n` times `candidates`).
        waiting: requests that wait for their turn; more are refused with 429.
        waiting_per_client: of them from one address.
        seconds: from a request's arrival to its answer; sending it is not counted.
        stuck_seconds: an engine that takes longer over one step counts as stuck.
        side: longest side of a picture that is returned.
        unsent_bytes: of answers that clients have not read yet, in memory.
        spooled_bytes: of further ones, in temporary files; an answer may take a quarter.
        connections: open connections. For one more, those that wait longest for their client are closed.
        header_seconds: for the head of a request to arrive.
        idle_seconds: for the next request on a connection.
        send_seconds: in which a client must read 48 KiB of its answer, or all that is left.
    """

    body_bytes: int = 32 << 20
    all_body_bytes: int = 128 << 20
    body_seconds: float = 30.0
    json_values: int = 100_000
    picture_pixels: int = 16_000_000
    all_pixels: int = 64_000_000
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
    unsent_bytes: int = 64 << 20
    spooled_bytes: int = 1 << 30
    connections: int = 512
    header_seconds: float = 10.0
    idle_seconds: float = 15.0
    send_seconds: float = 30.0
