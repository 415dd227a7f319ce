"""Training from token shards: the sequences of the original data set, an order that no number of processes
changes, and shards that can't be used."""

from __future__ import annotations

import itertools
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3core.document import Codes, Text
from cm3core.errors import CM3Error, DataError
from cm3core.files import sha256_file
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import compose
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.tokens import TokensSourceConfig
from cm3plugins.datasets.tokens.source import Ahead, TokensSource, stream_part
from cm3run.build import build
from cm3run.token_shards.record import write_tar
from cm3run.training.preparation import Preparation
from messages import tells
from picture_files import picture, write
from profiles import examples
from squares import PARTS

PLUGIN = str(PARTS / "train_parts.py")
SQUARES = str(PARTS / "squares.yaml")
TEXTS = ("text_tokenizer=byte", "decoder.context_length=80")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


def write_pictures(root: Path, number: int = 30) -> None:
    """Pictures with one to three captions, and a licence of their folder."""
    for index in range(number):
        captions = "\n".join(f"picture {index}, words {n}" for n in range(1 + index % 3))
        write(root, {f"{index:02d}.png": picture(index), f"{index:02d}.txt": captions})
    write(root, {"LICENSE": "SPDX-License-Identifier: CC0-1.0\n"})


def encode(*arguments: str) -> None:
    assert main(["--plugin", PLUGIN, "data", "encode", SQUARES, "--quiet", *arguments]) == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 30 pictures, 4 a shard, and the pictures beside them."""
    root = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM3_CACHE", str(root / "cache"))
        write_pictures(root / "pictures")
        encode(
            "-o",
            str(root / "out"),
            "--shard-size",
            "4",
            *TEXTS,
            "dataset=folder",
            f"dataset.path={root / 'pictures'}",
        )
    return root / "out"


def prepared(registry: Registry, *overrides: str, texts: Sequence[str] = TEXTS) -> Preparation:
    recipe = compose(SQUARES, [*texts, *overrides], registry=registry)
    return Preparation(build(recipe, registry, stage="train"), progress=False)


def source_of(folder: Path, **values: object) -> TokensSource:
    return TokensSourceConfig(path=str(folder), **values).build()  # type: ignore[arg-type]  # a test's keys


@pytest.fixture(scope="class")
def shards_of_class(request: pytest.FixtureRequest, shards: Path) -> None:
    request.cls.shards = shards


class TestTokens(DocumentSourceContract):
    shards: Path
    pytestmark = pytest.mark.usefixtures("shards_of_class")
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return source_of(self.shards)


# ---- parity


def test_sequences_are_those_of_the_original(registry: Registry, shards: Path) -> None:
    """Eight shards are shuffled as a whole: then the batches are the same, captions drawn alike."""
    original = prepared(registry, "dataset=folder", f"dataset.path={shards.parent / 'pictures'}")
    encoded = prepared(registry, "dataset=tokens", f"dataset.path={shards}")
    one, other = original.loader(), encoded.loader()
    for _ in range(25):
        left, right = next(one), next(other)
        assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))
    assert one.epoch >= 2


def test_validation_is_that_of_the_original(registry: Registry, shards: Path) -> None:
    original = prepared(registry, "dataset=folder", f"dataset.path={shards.parent / 'pictures'}")
    encoded = prepared(registry, "dataset=tokens", f"dataset.path={shards}")
    for preparation in (original, encoded):
        held = preparation.components.split("valid")
        assert len(held) > 0
    sequences = [
        preparation.sequences(
            preparation.components.split("valid"),
            preparation.components.objective,
            retrieve=False,
            training=False,
        )
        for preparation in (original, encoded)
    ]
    for index in range(len(sequences[0])):
        left, right = (one.sequence(0, index) for one in sequences)
        assert np.array_equal(left.tokens, right.tokens)


def test_a_memory_of_shards_is_compared_by_texts_alone(
    registry: Registry, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, unless the retriever compares nothing but words, or searches a bank of the pictures."""
    encoded = ("dataset=tokens", f"dataset.path={shards}", f"data.cache_dir={tmp_path}")
    texts = ("text_tokenizer=byte", "decoder.context_length=160")
    dense = ("retriever=dense", "embedder=light_encoder")
    note = "note: the memory is token shards, which have no pictures"
    prepared(registry, *encoded, *dense, texts=texts)
    assert note in capsys.readouterr().err
    prepared(registry, *encoded, "retriever=bm25", texts=texts)
    prepared(registry, *encoded, "retriever=none")
    bank = tmp_path / "bank"
    data = ("dataset=folder", f"dataset.path={shards.parent / 'pictures'}")
    command = ["--plugin", PLUGIN, "memory", "build", SQUARES, *data, *dense, *texts]
    assert main([*command, "-o", str(bank), "--quiet"]) == 0
    prepared(registry, *encoded, *dense, f"retriever.bank={bank}", texts=texts)
    assert note not in capsys.readouterr().err


def test_what_is_known_of_a_document_stays_known(shards: Path) -> None:
    source = source_of(shards)
    original = {one.stem: one for one in (shards.parent / "pictures").glob("*.png")}
    for index in range(len(source)):
        name = source.id(index).removesuffix(".png")
        assert name in original
        assert source.provenance(index) == Provenance("CC0-1.0")
        text, codes = source.document(index)
        assert isinstance(text, Text)
        assert isinstance(codes, Codes)
        assert text.text == f"picture {int(name)}, words 0"
        assert any(key.startswith("image:") for key in source.content_keys(index))
    assert source.provenances() == {Provenance("CC0-1.0"): len(source)}


def test_nothing_is_read_before_it_is_needed(
    registry: Registry, shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "out")
    for path in folder.glob("train-*.tar"):
        path.unlink()
    preparation = prepared(registry, "dataset=tokens", f"dataset.path={folder}")
    with pytest.raises(DataError, match=r"train-00000\d.tar: there is no such file"):
        next(preparation.loader())


# ---- order


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_streams_share_the_documents_out(
    sizes: list[int], num_streams: int, together: int, random: object
) -> None:
    """Each document at most once, equally many for each stream, at most V - 1 left out; a block's documents
    are of `together` shards."""
    starts = np.cumsum([0, *sizes])
    shards = np.array(random.sample(range(len(sizes)), len(sizes)), np.int64)  # type: ignore[attr-defined]  # hypothesis' Random
    size = int(starts[-1]) // num_streams
    seen: list[int] = []
    for place in range(num_streams):
        blocks, followers = stream_part(shards, starts, place * size, (place + 1) * size, together)
        for block in blocks:
            numbers = set(np.searchsorted(starts, block, side="right") - 1)
            assert len(numbers) <= together
            assert numbers <= set(followers)
        own = [int(one) for block in blocks for one in block]
        assert len(own) == size
        seen += own
    assert len(set(seen)) == len(seen) == size * num_streams


def test_a_stream_reads_a_part_after_another(shards: Path) -> None:
    source = source_of(shards, shuffle_shards=2)
    order = source.stream_order(seed=1, epoch=0, place=0, num_streams=1)
    assert order is not None
    assert sorted(order.tolist()) == list(range(len(source)))
    numbers = np.searchsorted(source._starts, order, side="right") - 1
    changes = [key for key, _ in itertools.groupby(numbers.tolist())]
    assert len(changes) > len(source.shards)  # shuffled within two shards
    first = sum(source.shards[number].num_documents for number in dict.fromkeys(changes[:2]))
    assert len(set(numbers[:first].tolist())) == 2
    again = source_of(shards, shuffle_shards=2).stream_order(1, 0, 0, 1)
    assert np.array_equal(order, again)
    for seed, epoch in ((2, 0), (1, 1)):
        other = source.stream_order(seed, epoch, 0, 1)
        assert other is not None
        assert not np.array_equal(order, other)


@pytest.mark.parametrize(
    "shuffle_shards", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 16))]
)
def test_any_number_of_processes_has_the_same_rows(
    registry: Registry, shards: Path, shuffle_shards: int
) -> None:
    """Rows of a step: those of one process are dealt out to two and four; a state resumes in any number."""
    from cm3run.processes import Processes
    from cm3run.training.packing import BatchLoader, RowSettings

    class Pretended(Processes):
        def __init__(self, rank: int, number: int) -> None:
            self.rank, self.world_size = rank, number

    data = prepared(
        registry,
        "dataset=tokens",
        f"dataset.path={shards}",
        f"dataset.shuffle_shards={shuffle_shards}",
    )._training

    def rows(number: int, steps: int) -> list[npt.NDArray[np.int32]]:
        loaders = [
            BatchLoader(
                data,
                RowSettings(4, 80, seed=0, accumulate=1, num_streams=4),
                processes=Pretended(rank, number),
            )
            for rank in range(number)
        ]
        dealt: list[npt.NDArray[np.int32]] = []
        for _ in range(steps):
            batches = [loader.next_step() for loader in loaders]
            own = [[row for batch in one for row in batch.tokens_BT.numpy()] for one in batches]
            dealt += [own[place % number][place // number] for place in range(4)]
        return dealt

    whole = rows(1, 6)
    for number in (2, 4):
        for left, right in zip(whole, rows(number, 6), strict=True):
            assert np.array_equal(left, right)


# ---- what can't be used


def refused(folder: Path, *, split: str = "train") -> CM3Error:
    def read() -> None:
        source = source_of(folder, split=split)
        for index in range(len(source)):
            source.document(index)

    with pytest.raises(CM3Error) as caught:
        read()
    return caught.value


def test_shards_that_are_not_whole(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "out")
    path = folder / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-2000])
    step = "copy it again from its source, or encode the data set again"
    assert str(refused(folder)) == (
        f"{path}: is truncated: {len(content) - 2000:,} of {len(content):,} bytes\n  next: {step}"
    )
    path.write_bytes(content + b"0")
    assert "is too long" in str(refused(folder))
    path.write_bytes(content[:600] + b"X" + content[601:])
    assert str(refused(folder)) == (
        f"{path}: has changed: its SHA-256 differs from the manifest's\n  next: {step}"
    )
    path.unlink()
    assert tells(refused(folder), f"{path}: there is no such file ... dataset.path")


def test_manifests_that_are_none(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "out")
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    assert str(refused(folder, split="vaild")) == (
        f"{path}: has no split 'vaild'\n  next: did you mean 'valid'?"
    )
    for content, cause in (
        ("{", "is not the manifest of token shards"),
        ("[]", "is not the manifest of token shards"),
        (
            json.dumps(values | {"format": "cm3 token shards 9"}),
            "has the format 'cm3 token shards 9' ... 'cm3 token shards 1'",
        ),
        (json.dumps(values | {"grid": [0, 1]}), "is damaged (grid[0] is 0 (use 1 or more))"),
        (
            json.dumps(values | {"splits": 3}),
            "is damaged (splits is 3, must be a mapping)",
        ),
        (
            json.dumps(values).replace("train-000001.tar", "../1.tar"),
            "is damaged (splits['train'].shards[1].name is '../1.tar', must be a file's name)",
        ),
    ):
        path.write_text(content)
        assert tells(refused(folder).cause, cause)
    path.unlink()
    assert refused(folder).cause == "there is no such file"
    assert tells(
        refused(tmp_path / "nothing"),
        f"dataset.path {tmp_path / 'nothing'}: there is no such folder ... dataset.path",
    )


def with_records(shards: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The shards with every record changed, and the manifest's hashes as its author would state them."""
    folder = shutil.copytree(shards, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        path, documents = folder / shard["name"], []
        with tarfile.open(path) as tar:
            members = {one.name: file.read() for one in tar if (file := tar.extractfile(one))}
        for name, content in members.items():
            if name.endswith(".json"):
                values = json.loads(content)
                change(values)
                key = name.removesuffix(".json")
                documents.append((key, json.dumps(values).encode(), members.get(f"{key}.npy")))
        write_tar(path, documents)
        shard |= {"num_bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def of_text(**values: object) -> Callable[[dict[str, Any]], object]:
    """Change the text of a record."""
    return lambda record: next(one for one in record["segments"] if "texts" in one).update(values)


HOSTILE_RECORDS = {
    "a number as a text": (of_text(texts=[5]), "segments[0].texts[0] is 5, must be a text"),
    "null as a text": (of_text(texts=[None]), "segments[0].texts[0] is None, must be a text"),
    "texts as ids": (of_text(ids=[["x"]]), "segments[0].ids[0][0] is 'x', must be a whole number"),
    "a boolean as an id": (of_text(ids=[[True]]), "is True, must be a whole number"),
    "a fraction as an id": (of_text(ids=[[1.5]]), "is 1.5, must be a whole number"),
    "half a character": (of_text(texts=["\ud800"]), "holds half a character ('\\ud800'"),
    "no ids": (of_text(ids=[]), "texts, 0 of ids"),
    "no texts": (of_text(texts=[], ids=[]), "has 0 texts, 0 of ids"),
    "a text alone": (of_text(texts="a"), "texts is 'a', must be a list of texts"),
    "a response elsewhere": (of_text(texts=["a"], ids=[[97]], responses=[[[0, 2]]]), "outside"),
    "a response backwards": (of_text(responses=[[[1, 0]]]), "outside of its text"),
    "a picture elsewhere": (
        lambda record: record["segments"].append({"picture": 1}),
        "picture 1 of",
    ),
    "a picture before": (lambda record: record["segments"].append({"picture": -1}), "is -1"),
    "nothing": (lambda record: record["segments"].append({}), "neither a text with its ids nor"),
    "no number": (lambda record: record.update(group=float("nan")), "holds NaN"),
    "an id of no name": (lambda record: record.update(id="a\0"), "without the character 0"),
    "a licence of no text": (
        lambda record: record.update(licence=3),
        "licence is 3, must be a text",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_records_with_right_hashes_and_wrong_values(
    shards: Path, tmp_path: Path, name: str
) -> None:
    change, cause = HOSTILE_RECORDS[name]
    error = refused(with_records(shards, tmp_path / "out", change))
    assert isinstance(error, DataError)
    assert error.place == "train-000000.tar, document 0"
    assert error.cause.startswith("is not a document of token shards (")
    assert cause in error.cause
    assert error.next_step == "encode the data set again with this version"


@pytest.mark.parametrize("name", ["a number as a text", "null as a text", "texts as ids"])
def test_training_refuses_records_with_right_hashes_and_wrong_values(
    shards: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, cause = HOSTILE_RECORDS[name]
    folder = with_records(shards, tmp_path / "out", change)
    options = [*TEXTS, "dataset=tokens", f"dataset.path={folder}", "train.steps=2"]
    out = str(tmp_path / "run")
    assert main(["--plugin", PLUGIN, "train", SQUARES, *options, "-o", out, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert cause in said
    assert "\n  next: encode the data set again" in said


def test_ids_that_the_text_tokenizer_lacks(
    registry: Registry, shards: Path, tmp_path: Path
) -> None:
    """Types are checked where shards are read, and the range where the vocabulary is known."""
    for ids in ([-1], [256], [10**30]):
        folder = with_records(
            shards, tmp_path / f"out{ids[0] % 97}", of_text(texts=["a"], ids=[ids])
        )
        with pytest.raises(CM3Error, match=r"text ids .*, but the text tokenizer has 256"):
            next(prepared(registry, "dataset=tokens", f"dataset.path={folder}").loader())


def test_another_tokenizer(registry: Registry, shards: Path) -> None:
    path = shards / "manifest.json"
    for override, kind, name in (
        (f"{TEXTS[0]} image_tokenizer.variant=b", "image_tokenizer", "colours colours-a"),
        ("text_tokenizer=characters", "text_tokenizer", "byte "),
    ):
        given = [*override.split(), TEXTS[1]]
        with pytest.raises(CM3Error) as caught:
            prepared(registry, "dataset=tokens", f"dataset.path={shards}", texts=given)
        assert str(caught.value).startswith(
            f"{path}: the shards were encoded with another {kind}: {name}"
        )
        assert tells(caught.value.next_step, f"use the {kind} ... manifest")


def test_a_trained_text_tokenizer_comes_with_the_shards(registry: Registry, tmp_path: Path) -> None:
    """BPE is trained on the data set's texts once; training on the shards takes the same one, though one of
    their texts would be another."""
    trained = ("text_tokenizer=bpe", "text_tokenizer.vocab_size=300", "text_tokenizer.path=null")
    out = tmp_path / "out"
    assert (
        main(
            [
                "--plugin",
                PLUGIN,
                "data",
                "encode",
                SQUARES,
                "-o",
                str(out),
                "--quiet",
                "--duplicates",
                "pictures",
                *trained[:2],
                "dataset.num_documents=41",
            ]
        )
        == 0
    )
    recipe = compose(
        SQUARES,
        ["dataset=tokens", f"dataset.path={out}", *trained, "decoder.context_length=80"],
        registry=registry,
    )
    components = build(recipe, registry, stage="train")
    source = components.source
    assert isinstance(source, TokensSource)
    assert source.manifest.splits["train"].num_duplicates == 21
    own = source.manifest.text_tokenizer.fingerprint
    assert components.text_tokenizer.fingerprint == own
    assert recipe.text_tokenizer is not None
    assert recipe.text_tokenizer.build(source.texts()).fingerprint != own


def test_a_task_is_not_applied_twice(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "out")
    path = folder / "manifest.json"
    assert set(source_of(folder).record(0)) == {"caption", "image"}
    path.write_text(path.read_text().replace('"task": ""', '"task": "vqa"'))
    with pytest.raises(DataError) as caught:
        source_of(folder).record(0)
    assert tells(caught.value, "document 00.png: was already ... 'vqa'")


# ---- fetching ahead


def test_the_next_shards_are_fetched_while_one_is_read() -> None:
    fetched: list[int] = []
    done = threading.Event()

    def fetch(number: int) -> None:
        if number == 9:
            raise DataError("shard 9", "can't be read", "")
        fetched.append(number)
        if len(fetched) == 3:
            done.set()

    ahead = Ahead(fetch, distance=2)
    ahead.follow([4, 9, 2, 7, 5, 1])
    ahead.reached(4)
    assert done.wait(10)
    assert sorted(fetched) == [2, 5, 7]
    ahead.stop()
    ahead.follow([1, 2])
