"""Models by name: loaded once, the least recently used dropped, never one in use."""

from __future__ import annotations

import asyncio

import pytest

from cm3core.errors import CheckpointError
from cm3serve.errors import APIError
from cm3serve.scheduling import ModelPool
from toy_model import toy_model


def pool(most: int) -> ModelPool:
    return ModelPool(dict.fromkeys("abc", toy_model), most)


async def touch(pool: ModelPool, name: str) -> None:
    async with pool.use(name):
        pass


def test_the_least_recently_used_is_dropped():
    async def main() -> None:
        models = pool(2)
        for name in "aba":
            await touch(models, name)
        await touch(models, "c")
        assert (models.loaded, models.loads, models.drops) == (["a", "c"], 3, 1)
        await models.close()

    asyncio.run(main())


def test_a_model_in_use_is_waited_for():
    async def main() -> None:
        models = pool(1)
        async with models.use("a") as first:
            waiting = asyncio.create_task(touch(models, "b"))
            later = asyncio.create_task(touch(models, "a"))  # behind the one that waits
            await asyncio.sleep(0.05)
            assert not waiting.done()
            assert not later.done()
            assert (await first.generate("red", 1, seed=1))[0].seed == 1
        await asyncio.gather(waiting, later)
        assert models.loads == 3
        await models.close()

    asyncio.run(main())


def test_many_at_once_load_it_once():
    async def main() -> None:
        models = pool(2)
        await asyncio.gather(*(touch(models, "a") for _ in range(20)))
        assert models.loads == 1
        await models.close()

    asyncio.run(main())


def test_one_that_gives_up_waiting_blocks_nobody():
    async def main() -> None:
        models = pool(1)
        async with models.use("a"):
            waiting = asyncio.create_task(touch(models, "b"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.wait_for(touch(models, "a"), 1)
        await models.close()

    asyncio.run(main())


def test_unknown_and_broken_models():
    def broken() -> None:
        raise CheckpointError("runs/x", "is damaged", "train again")

    async def main() -> None:
        models = ModelPool({"icons": toy_model, "broken": broken}, 1)  # type: ignore[dict-item]  # a stand-in
        assert models.name_of(None) == "icons"
        with pytest.raises(APIError, match="'icon' does not exist here; did you mean 'icons'") as e:
            models.name_of("icon")
        assert (e.value.status, e.value.code) == (404, "model_not_found")
        with pytest.raises(APIError, match="can't be loaded now") as e:
            await touch(models, "broken")
        assert e.value.status == 503
        assert "runs/x" not in e.value.message
        await touch(models, "icons")
        await models.close()

    asyncio.run(main())
