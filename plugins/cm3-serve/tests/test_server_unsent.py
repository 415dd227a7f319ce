"""Answers that are not read: memory first, then a file, in order, and nothing is held afterwards."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3serve.sending import Outbox, Unsent, UnsentFull
from cm3serve.settings import Limits


def unsent(memory: int, files: int) -> Unsent:
    return Unsent(Limits(unsent_bytes=memory, spooled_bytes=files))


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(0, 2**32), st.integers(0, 400))
def test_what_is_put_comes_out_in_order(pieces: list[bytes], seed: int, memory: int) -> None:
    """Whatever is read when; small pieces, and as they were put."""
    rng, own = random.Random(seed), unsent(memory, 1 << 20)

    async def main(size: int) -> list[bytes]:
        outbox, found = Outbox(own, size), []

        async def put() -> None:
            for piece in pieces:
                await outbox.put(piece)
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
            outbox.end()

        writer = asyncio.create_task(put())
        while (piece := await outbox.get()) is not None:
            found.append(piece)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        await writer
        outbox.close()
        return found

    assert b"".join(asyncio.run(main(7))) == b"".join(pieces)
    assert asyncio.run(main(0)) == pieces
    assert (own.in_memory, own.in_files) == (0, 0)


def test_files_are_used_when_memory_is_full_and_have_an_end_too() -> None:
    own = unsent(10, 400)

    async def main() -> None:
        first, second = Outbox(own), Outbox(own)
        await first.put(b"m" * 10)
        await first.put(b"f" * 60)
        assert (own.in_memory, own.in_files, first.size) == (10, 60, 70)
        with pytest.raises(UnsentFull):  # more than a quarter of all
            await first.put(b"f" * 41)
        await second.put(b"g" * 90)
        assert own.in_files == 150
        assert [await first.get(), await first.get()] == [b"m" * 10, b"f" * 60]
        assert (own.in_memory, own.in_files) == (0, 90)
        await first.put(b"f" * 100)  # the file is empty again
        first.close()
        second.close()

    asyncio.run(main())
    assert (own.in_memory, own.in_files) == (0, 0)


@given(st.lists(st.binary(max_size=90), max_size=12), st.integers(0, 90), st.integers(0, 40))
def test_nothing_is_held_whenever_the_client_leaves(
    pieces: list[bytes], memory: int, turns: int
) -> None:
    own = unsent(memory, 1 << 20)

    async def respond(outbox: Outbox) -> None:
        try:
            for piece in pieces:
                await outbox.put(piece)
            outbox.end()
            while await outbox.get() is not None:
                await asyncio.sleep(0)
        finally:
            outbox.close()

    async def main() -> None:
        response = asyncio.create_task(respond(Outbox(own, 7)))
        for _ in range(turns):
            await asyncio.sleep(0)
        response.cancel()
        await asyncio.gather(response, return_exceptions=True)

    asyncio.run(main())
    assert (own.in_memory, own.in_files) == (0, 0)


def test_a_piece_is_given_back_whose_client_left_while_it_was_read() -> None:
    own = unsent(0, 400)

    async def main() -> None:
        outbox = Outbox(own)
        await outbox.put(b"f" * 60)
        reading = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        outbox.close()

    asyncio.run(main())
    assert own.in_files == 0


def test_a_disk_that_is_full_ends_the_answer(monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    own = unsent(0, 400)

    async def main() -> None:
        outbox = Outbox(own)
        with pytest.raises(UnsentFull):
            await outbox.put(b"x")
        outbox.close()

    asyncio.run(main())
    assert own.in_files == 0
