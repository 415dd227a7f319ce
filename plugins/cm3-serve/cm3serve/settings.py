"""The limits of the server: every number that bounds requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of the size and time of one request and of all requests together. Each has a test.

    Args:
        body_bytes: bytes of a request's body.
        all_body_bytes: bytes of all bodies in memory; a request waits for its share.
        body_seconds: seconds for a body to arrive, at an even pace after the first third.
        json_values: commas and opening brackets of a JSON body; each may become a Python object.
        picture_pixels: pixels of an uploaded picture, checked before decoding.
        all_pixels: pixels of the pictures of one request, and of all requests while their pictures are
            decoded. A picture to inpaint counts until its request ends, and so do its results.
        pictures: pictures uploaded with one request.
        prompt_characters: characters of each text. The model's own limit, in tokens, also applies.
        number: results of one request (`n`).
        candidates: candidates per result.
        at_once: results and candidates generated at once, for all requests together; also the limit
            of one request (`n` times `candidates`).
        waiting: waiting requests; further requests are refused with 429.
        waiting_per_client: waiting requests from one address.
        seconds: seconds from a request's arrival to its response, without sending it.
        stuck_seconds: an engine that takes longer for one step counts as stuck.
        side: longest side of a returned picture.
        unsent_bytes: bytes of unread responses in memory.
        spooled_bytes: bytes of further unread responses in temporary files; one response may use a quarter.
        connections: open connections. Beyond it, those that have waited longest for their client are closed.
        header_seconds: seconds for the head of a request to arrive.
        idle_seconds: seconds for the next request on a connection.
        send_seconds: seconds in which a client must read 48 KiB of its response, or all of the rest.
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
