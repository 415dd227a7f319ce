"""Token shards in an object store: an S3-compatible server on this machine, reached by fsspec and s3fs over
HTTP, with everything that goes wrong between the two."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import CM3Error, DataError, MissingPackageError
from cm3core.files import write_bytes
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.datasets.tokens import TokensSourceConfig
from cm3plugins.datasets.tokens import storage as storages
from cm3plugins.datasets.tokens.source import Ahead, TokensSource
from cm3plugins.datasets.tokens.storage import ObjectStorage
from cm3run.build import build
from cm3run.checkpoint.layout import WORDS
from cm3run.training.loop import train
from cm3run.training.preparation import Preparation
from messages import tells
from s3_environment import s3_environment
from squares import PARTS, encode_squares

PLUGIN = str(PARTS / "train_parts.py")
SQUARES = str(PARTS / "squares.yaml")


class Server:
    """moto's server, in threads of this process; its objects outlive a stop."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._made = ThreadedMotoServer
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = self._made("127.0.0.1", self.port, verbose=False)
        self._server.start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("moto.server", reason="needs moto, flask and flask-cors: an S3 server")
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_squares(tmp_path_factory.mktemp("encoded") / "out")


@pytest.fixture(scope="module", autouse=True)
def keys(server: Server) -> Iterator[None]:
    with s3_environment(server.address, "nobody", "nothing"):
        yield


@pytest.fixture(scope="module")
def bucket(keys: None, shards: Path) -> str:
    """The shards in a bucket."""
    import s3fs

    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    files.put(str(shards), "bucket/data/shards", recursive=True)
    files.invalidate_cache()
    return "s3://bucket/data/shards"


def source_of(path: str, cache: Path, **values: Any) -> TokensSource:
    return TokensSourceConfig(path=path, cache_dir=str(cache), **values).build()


@pytest.mark.slow
def test_the_documents_of_a_store_are_those_of_a_folder(
    bucket: str, shards: Path, tmp_path: Path
) -> None:
    here, there = TokensSourceConfig(path=str(shards)).build(), source_of(bucket, tmp_path)
    assert there.fingerprint == here.fingerprint
    assert not list(tmp_path.rglob("*")), "nothing is fetched before it is needed"
    for index in range(len(here)):
        assert there.document(index) == here.document(index)
    # a second process finds them in the cache, by their hashes, whatever their address is
    fetched = {path.name for path in (tmp_path / "shards").glob("??/*") if not path.suffix}
    assert fetched == {shard.sha256 for shard in here.shards}


@pytest.mark.slow
def test_training_from_a_store(bucket: str, shards: Path, tmp_path: Path) -> None:
    registry = load_registry([PARTS / "train_parts.py"])
    loaders = []
    for path in (str(shards), bucket):
        recipe = compose(
            SQUARES,
            [
                "dataset=tokens",
                f"dataset.path={path}",
                "dataset.shuffle_shards=2",
                "data.num_streams=2",
                f"dataset.cache_dir={tmp_path}",
            ],
            registry=registry,
        )
        loaders.append(Preparation(build(recipe, registry, stage="train"), progress=False).loader())
    for _ in range(20):
        left, right = map(next, loaders)
        assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))


def test_a_run_fetches_only_what_it_trains_on(bucket: str, tmp_path: Path) -> None:
    """Nothing reads all documents at the start: not for licences, not for words, not for codes."""
    registry = load_registry([PARTS / "train_parts.py"])
    recipe = compose(
        SQUARES,
        [
            "dataset=tokens",
            f"dataset.path={bucket}",
            "dataset.shuffle_shards=1",
            "train.steps=1",
            f"dataset.cache_dir={tmp_path / 'cache'}",
            "train.validation_splits=[]",
            "train.batch_rows=1",
            "data.pack=false",
            "train.licences=[unknown]",
        ],
        registry=registry,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ahead, "follow", lambda *_: None)
        result = train(recipe, tmp_path / "run", registry, progress=False)
    fetched = [one for one in (tmp_path / "cache").glob("shards/??/*") if len(one.name) == 64]
    assert len(fetched) == 2, "the text tokenizer and one of seven shards"
    assert not (result.checkpoint / WORDS).exists()
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["trained_on"][0]["documents"] == 20


def test_a_store_that_comes_back_is_waited_for(
    bucket: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(bucket, tmp_path)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            server.start()

    storage = source.storage
    assert isinstance(storage, ObjectStorage)
    monkeypatch.setattr(storage, "_pause", pause)
    server.stop()
    assert len(source.document(0)) == 2
    assert pauses == [0.5, 1.0]


def test_a_store_that_is_gone(
    bucket: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = source_of(bucket, tmp_path, tries=3)
    pauses: list[float] = []
    monkeypatch.setattr(source.storage, "_pause", pauses.append)
    server.stop()
    try:
        with pytest.raises(DataError) as caught:
            source.document(0)
    finally:
        server.start()
    assert tells(caught.value, f"{bucket}/train-000000.tar: can't be read after 3 ... URL")
    assert tells(caught.value.next_step, "check the network, the store's address")
    assert pauses == [0.5, 1.0]
    told = capsys.readouterr().err.splitlines()  # a wait that nobody is told of looks like a fault
    for line, number in zip(told, (1, 2), strict=True):
        place = f"{bucket}/train-000000.tar"
        assert line.startswith(f"note: {place}: try {number} of 3 failed (Could not connect to the")
    assert len(source.document(0)) == 2, "the same source goes on when the store is back"


@pytest.mark.parametrize("fault", ["cut off", "changed", "missing"])
def test_shards_of_a_store_that_are_not_whole(
    bucket: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    import s3fs

    files = s3fs.S3FileSystem()
    content = (shards / "train-000000.tar").read_bytes()
    path = f"{bucket}/train-000000.tar"
    if fault == "missing":
        files.rm(path)
    else:
        files.pipe(path, content[:-1000] if fault == "cut off" else b"X" + content[1:])
    files.invalidate_cache()
    source = source_of(bucket, tmp_path, tries=2)
    pauses: list[float] = []
    monkeypatch.setattr(source.storage, "_pause", pauses.append)
    with pytest.raises(DataError) as caught:
        source.document(0)
    size = len(content)
    cause, tried = {
        "cut off": (f"is truncated: {size - 1000:,} of {size:,} bytes", 1),
        "changed": ("has changed: its SHA-256 differs from the manifest's", 1),
        "missing": ("there is no such file in the store", 0),
    }[fault]
    assert (caught.value.place, caught.value.cause) == (path, cause)
    assert len(pauses) == tried
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".lock"]
    files.pipe(path, content)
    assert len(source.document(0)) == 2


def test_a_cache_with_a_limit(bucket: str, tmp_path: Path) -> None:
    source = source_of(bucket, tmp_path, cache_gb=50e-6)
    for index in range(len(source)):
        source.document(index)
        held = [one for one in (tmp_path / "shards").glob("??/*") if len(one.name) == 64]
        assert sum(one.stat().st_size for one in held) <= 50_000
    assert source.document(0), "what is open stays readable"


def test_a_clock_that_was_set_back_costs_nothing_fresh(tmp_path: Path) -> None:
    """What was used while the clock was a year ahead ages from now on, and does not outlive what is used."""
    storage = ObjectStorage("memory://", tmp_path, 250, 1)
    ahead, fresh = (tmp_path / (name * 2) / (name * 64) for name in "ab")
    for path in (ahead, fresh):
        write_bytes(path, bytes(100))
    now = time.time()
    os.utime(ahead, (now + 365 * 86400, now + 365 * 86400))
    storage._make_room(50)
    assert ahead.stat().st_mtime <= time.time()
    os.utime(ahead, (now - 60, now - 60))  # a minute passes
    storage._make_room(100)
    assert (ahead.is_file(), fresh.is_file()) == (False, True)


def test_a_cached_shard_that_the_disk_changed_is_fetched_again(bucket: str, tmp_path: Path) -> None:
    first = source_of(bucket, tmp_path)
    document = first.document(0)
    path = tmp_path / "shards" / first.shards[0].sha256[:2] / first.shards[0].sha256
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert source_of(bucket, tmp_path).document(0) == document


def test_addresses_that_can_not_be_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CM3Error) as caught:
        source_of("s3://nothing/there", tmp_path)
    assert caught.value.place == "s3://nothing/there/manifest.json"
    assert caught.value.cause == "there is no such bucket in the store"
    with pytest.raises(CM3Error) as caught:
        source_of("strange://nothing/there", tmp_path)
    assert tells(
        caught.value, "dataset.path strange://nothing/there: fsspec can't use it (Protocol not"
    )

    def missing(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    import fsspec.core

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingPackageError) as other:
        storages.storage_of("s3://a/b", tmp_path, None, 1)
    assert tells(other.value, "dataset.path s3://a/b: the package 's3fs' ... 'cm3leon[s3]'")


def test_a_trained_text_tokenizer_is_fetched(server: Server, tmp_path: Path) -> None:
    import s3fs

    registry = load_registry([PARTS / "train_parts.py"])
    trained = ["text_tokenizer=bpe", "text_tokenizer.vocab_size=300"]
    out = tmp_path / "out"
    assert (
        main(["--plugin", PLUGIN, "data", "encode", SQUARES, "-o", str(out), "--quiet", *trained])
        == 0
    )
    files = s3fs.S3FileSystem()
    files.mkdir("tokenizers")
    files.put(str(out), "tokenizers/out", recursive=True)
    shutil.rmtree(out)
    recipe = compose(
        SQUARES,
        [
            "dataset=tokens",
            "dataset.path=s3://tokenizers/out",
            f"dataset.cache_dir={tmp_path}",
            *trained,
        ],
        registry=registry,
    )
    components = build(recipe, registry, stage="train")
    source = components.source
    assert isinstance(source, TokensSource)
    assert components.text_tokenizer.fingerprint == source.manifest.text_tokenizer.fingerprint
