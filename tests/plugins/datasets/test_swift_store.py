"""Token shards in a real object store: OpenStack Swift on this machine, by S3's protocol. Signatures, listings,
parts of uploads, ranges of downloads, and every way in which it refuses or is gone."""

from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import DataError
from cm3core.plugins import load_registry
from cm3plugins.datasets.tokens import TokensSourceConfig
from cm3plugins.datasets.tokens import storage as storages
from cm3plugins.datasets.tokens.source import Ahead, TokensSource
from cm3plugins.datasets.tokens.storage import ObjectStorage
from cm3run.training.loop import train
from messages import tells
from s3_environment import s3_environment
from squares import PARTS, encode_squares, squares, weights
from swift_server import KEY, SECRET, SwiftServer

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_squares(tmp_path_factory.mktemp("encoded") / "out")


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[SwiftServer]:
    """The server, and the environment that names it."""
    with s3_environment(swift.address, KEY, SECRET):
        yield swift


def files() -> Any:
    import s3fs

    return s3fs.S3FileSystem()


@pytest.fixture
def bucket(store: SwiftServer, shards: Path, request: pytest.FixtureRequest) -> str:
    """The shards in a bucket of the test's own."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    there = files()
    there.mkdir(name)
    there.put(str(shards), f"{name}/my shards/ü", recursive=True)
    return f"s3://{name}/my shards/ü"


def source_of(path: str, cache: Path, **values: Any) -> TokensSource:
    return TokensSourceConfig(path=path, cache_dir=str(cache), **values).build()


def test_the_documents_of_the_store_are_those_of_a_folder(
    bucket: str, store: SwiftServer, shards: Path, tmp_path: Path
) -> None:
    here, there = TokensSourceConfig(path=str(shards)).build(), source_of(bucket, tmp_path)
    assert there.fingerprint == here.fingerprint
    assert [there.document(index) for index in range(len(here))] == [
        here.document(index) for index in range(len(here))
    ]
    # the store is a disk: each shard is a file there
    kept = {hashlib.sha256(path.read_bytes()).hexdigest() for path in store.object_files()}
    assert {shard.sha256 for shard in here.shards} <= kept


def test_a_large_shard_goes_up_in_parts_and_comes_back_in_ranges(
    store: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 * MIB)
    content = random.Random(0).randbytes(12 * MIB + 7)
    (tmp_path / "large.tar").write_bytes(content)
    there = files()
    there.mkdir("large")
    there.put_file(str(tmp_path / "large.tar"), "large/a/large.tar", chunksize=5 * MIB)
    assert there.info("large/a/large.tar")["ETag"].endswith('-3"'), "three parts"
    ranges: list[str] = []
    ask = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        ranges.append(kwargs.get("Range", ""))
        return await ask(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    storage = ObjectStorage("s3://large/a", tmp_path / "cache", None, 1)
    sha256 = hashlib.sha256(content).hexdigest()
    assert storage.checked("large.tar", len(content), sha256).read_bytes() == content
    assert len([one for one in ranges if one]) == 3, "three ranges"
    there.rm("large", recursive=True)
    assert not there.exists("large")


def test_a_run_from_the_store_that_is_killed_within_an_epoch(
    bucket: str, store: SwiftServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a run from a folder, after a wait and after a message and a resumption."""
    registry = load_registry([PARTS / "train_parts.py"])

    def run(path: str, name: str) -> bytes:
        recipe = squares(
            registry,
            tmp_path / "codes",
            [
                "dataset=tokens",
                f"dataset.path={path}",
                "dataset.shuffle_shards=1",
                "dataset.tries=3",
                f"dataset.cache_dir={tmp_path / name / 'cache'}",
                "train.steps=10",
                "data.pack=false",
                "train.validation_splits=[]",
                "data.num_streams=2",
                "train.checkpoint_every_steps=1",
            ],
        )
        return weights(train(recipe, tmp_path / name, registry, progress=False))

    asked: list[str] = []
    pauses: list[float] = []
    fetched, kill_at, comes_back = ObjectStorage._fetched, 5, True

    def count(self: ObjectStorage, name: str, num_bytes: int, sha256: str) -> Path:
        asked.append(name)
        if len(asked) == kill_at:
            store.kill()
        return fetched(self, name, num_bytes, sha256)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if comes_back:
            store.start()

    monkeypatch.setattr(ObjectStorage, "_fetched", count)
    monkeypatch.setattr(storages, "ObjectStorage", partial(ObjectStorage, pause=pause))
    monkeypatch.setattr(Ahead, "follow", lambda *_: None)  # shards are asked for when they are read
    expected = run(str(shards), "folder")
    assert not asked

    assert run(bucket, "waited") == expected
    assert pauses == [0.5]

    kill_at, comes_back = len(asked) + 5, False
    pauses.clear()
    try:
        with pytest.raises(DataError) as caught:
            run(bucket, "stopped")
    finally:
        store.start()
    assert caught.value.place.startswith(f"{bucket}/train-0000")
    assert caught.value.cause.startswith("can't be read after 3 tries (Could not connect to")
    assert caught.value.next_step.endswith("then start again; training resumes")
    assert pauses == [0.5, 1.0]
    assert list((tmp_path / "stopped").glob("checkpoint*")), "it had trained for a while"
    assert run(bucket, "stopped") == expected


@pytest.mark.parametrize("fault", ["cut off", "changed", "removed"])
def test_shards_that_are_not_whole(
    bucket: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source = source_of(bucket, tmp_path, tries=2)
    path, content = f"{bucket}/train-000000.tar", (shards / "train-000000.tar").read_bytes()
    if fault == "removed":
        files().rm(path)
    else:
        files().pipe(path, content[:-1000] if fault == "cut off" else b"X" + content[1:])
    monkeypatch.setattr(source.storage, "_pause", lambda seconds: None)
    with pytest.raises(DataError) as caught:
        source.document(0)
    size = len(content)
    assert (caught.value.place, caught.value.cause) == (
        path,
        {
            "cut off": f"is truncated: {size - 1000:,} of {size:,} bytes",
            "changed": "has changed: its SHA-256 differs from the manifest's",
            "removed": "there is no such file in the store",
        }[fault],
    )
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".lock"]
    files().pipe(path, content)
    assert len(source.document(0)) == 2


def test_a_disk_of_the_store_that_changes_a_shard(
    bucket: str, store: SwiftServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rots there is seen here."""
    source = source_of(bucket, tmp_path, tries=2)
    content = (shards / "train-000000.tar").read_bytes()
    for path in store.object_files():
        if path.read_bytes() == content:
            path.write_bytes(content[:500] + b"?" + content[501:])
    monkeypatch.setattr(source.storage, "_pause", lambda seconds: None)
    with pytest.raises(DataError) as caught:
        source.document(0)
    assert caught.value.place == f"{bucket}/train-000000.tar"


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "another")
    files().clear_instance_cache()
    with pytest.raises(DataError) as caught:
        source_of(bucket, tmp_path)
    assert tells(caught.value, f"{bucket}/manifest.json: the store refuses to read it")


def test_no_keys(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    files().clear_instance_cache()
    with pytest.raises(DataError) as caught:
        source_of(bucket, tmp_path)
    assert tells(caught.value, f"{bucket}/manifest.json: the store needs keys (Unable to")


def test_a_clock_that_jumps(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses what was signed an hour from now; a clock that is set right is waited for."""
    import botocore.auth

    def jump(hours: float) -> None:
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: now)

    source = source_of(bucket, tmp_path, tries=2)
    jump(1)
    monkeypatch.setattr(source.storage, "_pause", lambda seconds: None)
    with pytest.raises(DataError) as caught:
        source.document(0)
    assert tells(caught.value, f"{bucket}/train-000000.tar: can't be read after 2")
    monkeypatch.setattr(source.storage, "_pause", lambda seconds: jump(0))
    assert len(source.document(0)) == 2


def test_buckets_folders_and_hosts_that_are_not_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, what in (("s3://no-such-bucket/shards", "bucket"), (f"{bucket}/further", "file")):
        with pytest.raises(DataError) as caught:
            source_of(path, tmp_path)
        assert tells(caught.value, f"{path}/manifest.json: there is no ... {what} ... dataset.path")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid:9")
    files().clear_instance_cache()
    with pytest.raises(DataError) as caught:
        source_of(bucket, tmp_path, tries=1)
    assert tells(
        caught.value.cause,
        "can't be read after 1 try (Could not connect to the endpoint URL: \"http://store.invalid:9/",
    )
