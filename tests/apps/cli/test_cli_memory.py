"""`cm3 memory`, and `--bank`, `--context`, `--show-retrieved` where a model is used, through
`main`, with the bundled model."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from cm3apps.cli._model import Retrieval, retrieved_sheet
from cm3apps.cli.main import main
from cm3core.images import open_image
from cm3core.plugins import load_registry
from cm3plugins.image_tokenizers import vqgan
from cm3run import DEFAULT_MODEL
from cm3run.bank import MemoryBank
from cm3run.checkpoint import model_name
from cm3run.model import RetrievedDocument
from messages import tells

BUNDLED_WEIGHTS = Path(vqgan.__file__).parent / "assets" / "emoji64" / "model.safetensors"
WORDS = ("red square", "green square", "blue square", "grey square", "broken")
COLOURS = ((200, 30, 30), (30, 160, 60), (40, 60, 200), (128, 128, 128), (0, 0, 0))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures of squares, one of which is broken, and a table of two
    texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for words, colour in zip(WORDS, COLOURS, strict=True):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[16:48, 16:48] = colour
        Pictures.fromarray(pixels).save(folder / f"{words.split()[0]}.png")
        (folder / f"{words.split()[0]}.txt").write_text(words)
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:100])
    (tmp_path / "texts.jsonl").write_text(
        '{"id": "a", "segments": [{"text": "a yellow sun"}]}\n'
        '{"id": "b", "segments": [{"text": "the moon"}]}\n'
    )
    return tmp_path


def cm3(*arguments: object) -> int:
    """The command, with a small model whose retriever is dense."""
    line = [str(argument) for argument in arguments]
    own_parts = not {"--model", "--image-tokenizer", "tiny"}.isdisjoint(line)
    if (
        line[0] in ("generate", "infill", "caption") or line[:2] == ["memory", "build"]
    ) and not own_parts:
        line += ["--model", "bundled:emoji64"]
    return main(line)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_a_bank_of_own_pictures_is_built_changed_and_checked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cm3("memory", "build", "pictures", "-o", "bank", "--quiet") == 0
    out = printed(capsys)
    assert out.startswith(
        "embedder and image tokenizer of the model bundled:emoji64\n"
        "bank: 4 documents (4 of text and picture), "
    )
    assert "1 record skipped as unusable" in out
    assert "  pictures/broken.png: is truncated: the last chunk of a PNG (IEND) is missing\n" in out
    assert out.endswith(
        'retrieve from it: cm3 generate "..." --model bundled:emoji64 --bank bank --show-retrieved\n'
    )
    assert cm3("memory", "build", "pictures", "-o", "bank", "--quiet") == 0
    assert "nothing to do: this is already the bank of this data\n" in printed(capsys)

    assert cm3("memory", "add", "bank", "texts.jsonl", "--id-prefix", "t/", "--quiet") == 0
    assert re.search(
        r"bank: 6 documents \(4 of text and picture, 2 of text\), .* in 2 shards\nnew: 2\n",
        printed(capsys),
    )
    (place / "ids.txt").write_text("t/b\nred.png\n\nnobody\n")
    assert cm3("memory", "remove", "bank", "t/a", "--from", "ids.txt") == 0
    assert (
        "not found: 'nobody'\nremoved: 3 documents\nbank: 3 documents (3 of text and picture), "
    ) in printed(capsys)
    assert cm3("memory", "build", "texts.jsonl", "-o", "texts", "--quiet") == 0
    assert cm3("memory", "merge", "texts", "bank", "-o", "both", "--quiet") == 0
    capsys.readouterr()
    assert cm3("memory", "stat", "both", "--verify") == 0
    out = printed(capsys)
    assert re.fullmatch(
        r"documents        5 documents \(3 of text and picture, 2 of text\), .* MB in 2 shards\n"
        r"embedder         \w+, \d+ numbers per vector, fingerprint .{12}\n"
        r"image tokenizer  vqgan, 16 x 16 codes of 1,024, fingerprint .{12}\n"
        r"fingerprint      [0-9a-f]{24}\n"
        r"verified         every file is as written, every vector has length 1, every "
        r"document can be read\n"
        r"licences         unknown \(5\)\n",
        out,
    )
    codes = MemoryBank.open("both").shards[1].folder / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-1])
    assert cm3("memory", "stat", "both") == 1
    assert re.search(
        r"damaged          both/shards/.*: has \d+ bytes, not \d+\n  next: .*\ndamaged: 1 of 2 "
        r"shards\n",
        printed(capsys),
    )
    assert cm3("memory", "remove", "both", "--damaged") == 0
    assert printed(capsys).startswith(
        "removed: 1 damaged shard; its files are in both/set-aside\nremoved: 0 documents\nboth: 2 documents (2 of text), "
    )
    assert cm3("memory", "remove", "both") == 2
    assert tells(capsys.readouterr().err, "error: cm3 memory remove: no document is given")


@pytest.mark.slow
def test_a_recipe_gives_its_own_parts_and_its_training_split(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        cm3(
            "memory",
            "build",
            "tiny",
            "dataset=folder",
            "dataset.path=pictures",
            "--embedder",
            "light_encoder",
            "-o",
            "a bank",
            "dataset.valid=0.5",
            "--quiet",
        )
        == 0
    )
    out = printed(capsys)
    assert out.startswith("a bank: ")
    assert out.endswith(
        "retrieve from it, by a model with this embedder and image tokenizer: "
        "cm3 generate \"...\" --model MODEL --bank 'a bank' --show-retrieved\n"
    )
    part = MemoryBank.open("a bank")
    assert cm3("memory", "build", "pictures", "-o", "all", "--quiet") == 0
    assert 0 < len(part) < len(MemoryBank.open("all")) == 4
    assert (
        part.manifest.image_tokenizer.fingerprint
        == MemoryBank.open("all").manifest.image_tokenizer.fingerprint
    )
    assert (
        cm3(
            "memory",
            "build",
            "pictures",
            "-o",
            "other",
            "--model",
            "bundled:emoji64",
            "--image-tokenizer",
            "vqgan",
        )
        == 2
    )
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bank_goes_on_without_the_files_of_its_image_tokenizer(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(BUNDLED_WEIGHTS, place / "own.safetensors")
    own = ["--image-tokenizer", "vqgan", "image_tokenizer.weights=own.safetensors"]
    assert cm3("memory", "build", "pictures", "-o", "bank", *own, "--quiet") == 0
    default = model_name(DEFAULT_MODEL, load_registry())
    assert printed(capsys).startswith(f"embedder of the model {default}\n")
    (place / "own.safetensors").unlink()
    (place / "bank").rename(place / "moved")
    assert cm3("memory", "add", "moved", "pictures", "--id-prefix", "again/", "--quiet") == 0
    bank = MemoryBank.open("moved")
    assert bank.id(4) == "again/blue.png"
    assert bank.document(4) == bank.document(0)
    assert bank.content_keys(4) == bank.content_keys(0)


@pytest.mark.slow
def test_a_model_retrieves_from_a_bank_that_is_swapped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cm3("memory", "build", "pictures", "-o", "bank", "--quiet") == 0
    assert cm3("memory", "build", "texts.jsonl", "-o", "texts", "--quiet") == 0
    capsys.readouterr()
    assert (
        cm3("generate", "red square", "--bank", "bank", "-o", "out", "--n", 1, "--show-retrieved")
        == 0
    )
    out = printed(capsys)
    assert re.search(r"  retrieved 1: \w+\.png \(-?0\.\d+\) '\w+ square'\n", out)
    assert "out/retrieved.png\n" in out
    assert open_image("out/retrieved.png").shape[1] >= 3 * 128
    # one code is drawn
    corner = [
        "infill",
        "pictures/red.png",
        "--box",
        "0,0,4,4",
        "--text",
        "red square",
        "--show-retrieved",
    ]
    assert cm3(*corner, "--bank", "texts") == 0
    assert re.search(r"  retrieved 1: [ab] \(", printed(capsys))
    assert cm3(*corner, "--bank", "bank", "--set", "retriever.min_similarity=0.999") == 0
    assert "  retrieved: nothing\n" in printed(capsys)
    assert cm3(*corner, "--bank", "bank", "--context", "pictures/blue.png", "a blue thing") == 0
    assert "  retrieved 1: context 0 'a blue thing'\n" in printed(capsys)
    assert cm3(*corner, "--bank", "bank", "-o", "new/red.png") == 0
    out = printed(capsys)
    assert re.search(r"  retrieved 1: (green|blue|grey)\.png ", out), (
        "never the query's own document"
    )
    assert "\nnew/retrieved.png\n" in out
    assert (
        cm3(
            "caption",
            "pictures/red.png",
            "--bank",
            "bank",
            "--num-retrieved",
            1,
            "--show-retrieved",
            "--max-tokens",
            2,
        )
        == 0
    )
    out = printed(capsys)
    assert "red.png" not in out, "never the query's own document"
    assert re.search(r"  retrieved 1: (green|blue|grey)\.png ", out)
    assert out.endswith("\nretrieved.png\n")


@pytest.mark.slow
def test_codes_that_keep_little_are_told_where_a_bank_is_used(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are measured when the bank is built, which is the last to see the pictures."""
    assert cm3("memory", "build", "pictures", "-o", "bank", "--quiet") == 0
    measured = MemoryBank.open("bank").manifest.codes_psnr
    assert measured is not None
    assert measured >= 18, "the codes of emoji keep squares"
    corner = ["infill", "pictures/red.png", "--box", "0,0,4,4", "--text", "red square"]
    capsys.readouterr()
    assert cm3(*corner, "--bank", "bank") == 0
    assert "keep little" not in capsys.readouterr().err
    path = place / "bank" / "manifest.json"
    path.write_text(path.read_text().replace(f'"codes_psnr": {measured}', '"codes_psnr": 12.5'))
    assert cm3(*corner, "--bank", "bank") == 0
    assert tells(
        capsys.readouterr().err,
        "... note: the codes of the memory bank bank keep little of its pictures: median PSNR 12.5 dB",
    )


def test_a_bank_that_is_none_or_of_other_parts_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cm3("generate", "red", "--bank", "nowhere", "-o", "out") == 2
    assert tells(capsys.readouterr().err, "error: nowhere: does not exist ... 'cm3 memory build'")
    assert cm3("generate", "red", "--set", "retriever.min_similarty=0.3", "-o", "out") == 2
    assert tells(capsys.readouterr().err, "error: retriever.min_similarty: is not a key of this")
    assert not Path("out").exists()


def test_the_sheet_has_a_place_for_everything() -> None:
    red, text = (
        np.full((64, 64, 3), (255, 0, 0), np.uint8),
        RetrievedDocument("a", 0.5, "words " * 40, None),
    )
    by_hand = RetrievedDocument("context 0", None, "by hand", red)
    sheet = retrieved_sheet(
        [
            Retrieval("one", None, [by_hand, text], "", red),
            Retrieval("two", red, [], "a text", None),
        ]
    )
    assert sheet.shape[1] == 6 + 4 * (128 + 6)
    columns = [sheet[:, 6 + place * 134 : 6 + place * 134 + 128] for place in range(4)]
    assert [bool((column == (255, 0, 0)).all(2).sum() >= 128 * 128) for column in columns] == [
        True,
        True,
        False,
        True,
    ]
    assert retrieved_sheet([Retrieval("two", red, [], "a text", None)]).shape[1] == 6 + 2 * (
        128 + 6
    )
    # results of one query are side by side, each behind its document
    one, other = (Retrieval("one", None, [found], "", red) for found in (by_hand, text))
    alone = retrieved_sheet([one])
    both = retrieved_sheet([one, other])
    assert both.shape[1] == 6 + 5 * (128 + 6)
    # two pictures of one name are two queries
    named = [Retrieval("x.png", red.copy(), [by_hand], "", red) for _ in range(2)]
    assert retrieved_sheet(named).shape[1] == alone.shape[1]
    two_rows = retrieved_sheet([one, replace(other, query="two"), one])
    assert two_rows.shape[1] == alone.shape[1]
    assert two_rows.shape[0] > both.shape[0] + alone.shape[0]
