"""`cm3 data`, through `main`: what is printed, what is written, exit codes, and messages."""

from __future__ import annotations

import errno
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3apps.cli._dataset import composed, is_override, reader_of
from cm3apps.cli.main import main
from cm3core.errors import DataError
from cm3core.images import open_image
from cm3core.plugins import load_registry
from cm3run.picture_arrays import _empty
from messages import tells
from noisy_pictures import noisy_pictures


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return noisy_pictures(tmp_path, monkeypatch)


BAD = "pictures/4.png: is truncated: the last chunk of a PNG (IEND) is missing\n  next: replace or remove it\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["pictures"],
        ["dataset=folder", "dataset.path=pictures"],
        ["dataset.path=pictures", "--quiet", "dataset=folder"],
        ["tiny", "dataset=folder", "dataset.path=pictures"],
    ],
)
def test_validate_names_every_bad_record(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", *arguments]) == 1
    assert (
        capsys.readouterr().out
        == BAD + "pictures (folder): 4 good documents, 1 bad record, skipped in training\n"
    )


def test_a_folder_of_tars(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read as tars, unless it also holds pictures, at any depth, or is one of token shards."""
    folder, registry = place / "tars", load_registry()
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for suffix in ("png", "txt"):
            tar.add(place / "pictures" / f"0.{suffix}", f"0.{suffix}")
    assert main(["data", "validate", "tars"]) == 0
    assert capsys.readouterr().out == "tars (webdataset): 1 good document, 0 bad records\n"
    (folder / "manifest.json").touch()
    assert reader_of("tars", registry) == "folder"
    (folder / "manifest.json").unlink()
    (folder / "0.parquet").touch()  # beside img2dataset's tars
    assert reader_of("tars", registry) == "webdataset"
    (folder / "more").mkdir()
    (folder / "more" / "1.JPG").touch()
    assert reader_of("tars", registry) == "folder"


def test_a_data_set_of_bad_records_only_says_what_is_bad(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (place / "pictures" / f"{number}.png").unlink()
    assert main(["train", "tiny", "dataset=folder", "dataset.path=pictures", "-o", "out"]) == 2
    assert tells(capsys.readouterr().err, "error: recipe tiny, section dataset: split 'train' has")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("target", "step"),
    [("emojis", "did you mean 'emoji'?"), ("quickstrat", "did you mean 'quickstart'?")],
)
def test_what_is_no_data_at_all(target: str, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", target]) == 2
    assert tells(
        capsys.readouterr().err, f"error: {target}: is not a file, folder, recipe ... {step}"
    )


@pytest.mark.parametrize("action", ["validate", "show", "encode", "export"])
@pytest.mark.parametrize("name", ["0.png", "x.SVG"])
def test_a_picture_is_no_data_set(
    action: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "pictures" / "x.SVG").write_text("<svg/>")
    rest = ["-o", "shards"] if action in ("encode", "export") else []
    assert main(["data", action, f"pictures/{name}", *rest]) == 2
    assert tells(capsys.readouterr().err, f"error: pictures/{name}: is a picture, but a data")


def test_validate_names_pictures_that_show_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """White drawn on transparency, say, which is white on the white that pictures are put on."""
    folder = place / "pictures"
    white = np.full((12, 12, 4), 255, np.uint8)
    white[2:10, 2:10, 3] = 0
    Image.fromarray(white).save(folder / "4.png")
    Image.new("RGB", (12, 12), (9, 30, 90)).save(folder / "3.png")
    assert main(["data", "validate", "pictures"]) == 1
    step = (
        "its picture is blank, in a single colour\n  next: check whether it was rendered (white on transparency becomes white on "
        "white) and downloaded completely, or remove it\n"
    )
    assert capsys.readouterr().out == (
        f"document 3.png: {step}document 4.png: {step}"
        "pictures (folder): 3 good documents, 0 bad records, 2 blank documents, which the model would learn to draw\n"
    )


def test_validate_is_quiet_when_all_is_well(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "pictures" / "4.png").unlink()
    assert main(["data", "validate", "pictures"]) == 0
    assert capsys.readouterr().out == "pictures (folder): 4 good documents, 0 bad records\n"


def test_validate_knows_the_context_of_a_recipe(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training leaves such documents out: with the recipe, validation names them; without, it can't know."""
    (place / "pictures" / "4.png").unlink()
    (place / "pictures" / "1.txt").write_text("a very long caption " * 40)
    own = ["dataset=folder", "dataset.path=pictures", "data.max_text_tokens=2000"]
    assert main(["data", "validate", "pictures"]) == 0
    capsys.readouterr()
    overrides = ["text_tokenizer=byte", "decoder.context_length=288", *own]
    assert main(["data", "validate", "quickstart", *overrides]) == 1
    assert tells(capsys.readouterr().out, "document 1.png: has 866 tokens ... holds 289")
    assert main(["data", "validate", "quickstart", *overrides[:-1], "data.max_text_tokens=24"]) == 0


def test_validate_decodes_every_picture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixel data that only a decoder finds broken: the checksum is right, the stream is not."""
    import struct
    import zlib

    path = place / "pictures" / "4.png"
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", struct.pack(">IIBBBBB", 30, 30, 8, 2, 0, 0, 0)),
        (b"IDAT", b"not zlib"),
        (b"IEND", b""),
    ):
        data += (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )
    path.write_bytes(data)
    for next_step in (
        "replace or remove it; it is skipped from the next start on",
        "replace or remove it",
    ):
        assert main(["data", "validate", "pictures"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"pictures/4\.png: can't be read as a picture \(.*\)", lines[0])
        assert lines[1] == f"  next: {next_step}"
        assert lines[-1] == "pictures (folder): 4 good documents, 1 bad record, skipped in training"


def test_a_manifest_is_guessed_from_its_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"text": "a", "image": "pictures/0.png"}, {"text": "b", "image": "pictures/none.png"}]
    (place / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["data", "validate", "all.jsonl"]) == 1
    assert tells(
        capsys.readouterr().out, "all.jsonl:2: image pictures/none.png: there ... all.jsonl"
    )


def test_a_table_says_what_it_lacks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "all.csv").write_text("file,words\npictures/0.png,a\n")
    assert main(["data", "validate", "all.csv"]) == 2
    assert "; the table has file, words\n" in capsys.readouterr().err
    columns = "dataset.columns={image: file, caption: words}"
    assert main(["data", "validate", "all.csv", columns]) == 0
    assert capsys.readouterr().out == "all.csv (table): 1 good document, 0 bad records\n"


def test_nothing_is_not_good(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "all.csv").write_text("file,words\n")
    assert main(["data", "validate", "all.csv", "dataset.columns={image: file}"]) == 2
    assert capsys.readouterr() == (
        "",
        "error: all.csv (table): holds no record\n  next: check that it is the right file\n",
    )


def test_guesses(place: Path) -> None:
    assert [
        reader_of(path, load_registry())
        for path in ("pictures", "x.jsonl", "d-{00..09}.tar", "x.CSV", "tiny", "no/such/folder")
    ] == ["folder", "jsonl", "webdataset", "table", None, None]
    (place / "a=b").mkdir()
    assert [
        is_override(text)
        for text in ("dataset.path=x", "dataset=folder", "a=b", "pictures", "./x=y")
    ] == [True, True, False, False, False]


def test_overrides_win_over_a_path() -> None:
    recipe = composed(
        {"dataset": {"name": "folder", "path": "x"}},
        ["dataset.valid=0.5", "dataset.path=y"],
        load_registry(),
    )
    assert (recipe.dataset.path, recipe.dataset.valid) == ("y", 0.5)


def test_show(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "pictures", "dataset.valid=0.0", "-o", "sheet.png"]) == 0
    assert capsys.readouterr().out == (
        "pictures (folder)\n"
        "* train            4 documents          4 pictures (4 different)  texts of 15..15 "
        "letters, median 15\n"
        "  valid            0 documents          0 pictures (0 different)  \n"
        "  all              4 documents          4 pictures (4 different)  texts of 15..15 "
        "letters, median 15\n"
        "skipped 1 bad record; 'cm3 data validate' lists them all:\n"
        "  pictures/4.png: is truncated: the last chunk of a PNG (IEND) is missing\n"
        "sheet.png: 4 of the 4 documents of split 'train'\n"
    )
    sheet = open_image(place / "sheet.png")
    assert sheet.shape[1] == 6 + 4 * (128 + 6)
    assert len(np.unique(sheet)) > 200


def test_show_tells_of_pictures_in_both_splits(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight copies of a picture, whose names put some on either side."""
    picture = (place / "pictures" / "0.png").read_bytes()
    copies = place / "copies"
    copies.mkdir()
    for number in range(8):
        (copies / f"{number}.png").write_bytes(picture)
        (copies / f"{number}.txt").write_text("a copy")
    command = ["data", "show", "copies", "dataset.valid=0.5", "-o", "sheet.png"]
    said = (
        "1 picture of valid are also in train, under other names or captions\n"
        "  next: dataset.split_by=picture keeps each in one split\n"
    )
    assert main(command) == 0
    assert said in capsys.readouterr().out
    assert main([*command, "dataset.split_by=picture"]) == 0
    assert "next:" not in capsys.readouterr().out


def test_show_of_an_empty_split(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "pictures", "dataset.valid=0.0", "dataset.split=valid"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "split 'valid' is empty: no contact sheet"
    assert not list(place.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data", "validate"],
            "error: dataset: no data set is given ... NAME dataset.KEY",
        ),
        (
            ["data", "validate", "no.jsonl"],
            "error: dataset.path no.jsonl: there is no such file",
        ),
        (
            ["data", "show", "pictures", "--num", "0"],
            "error: cm3 data show: argument --num: is '0' ... from 1",
        ),
        (
            ["tokenizer", "train-text", "--vocab-size", "300", "-o", "bpe"],
            "error: cm3 tokenizer train-text: neither a recipe nor a file",
        ),
        (
            [
                "tokenizer",
                "train-text",
                "--vocab-size",
                "300",
                "-o",
                "bpe",
                "--recipe",
                "tiny",
                "pictures/0.txt",
            ],
            "error: cm3 tokenizer train-text: a recipe and files are given",
        ),
        (
            ["tokenizer", "train-text", "--vocab-size", "300", "-o", "bpe", "no.txt"],
            "error: no.txt: there is no such file",
        ),
        (
            ["tokenizer", "train-text", "--vocab-size", "200", "-o", "bpe", "pictures/0.txt"],
            "error: text_tokenizer.vocab_size: is 200; the 256",
        ),
        (
            ["tokenizer", "eval", "pictures"],
            "error: pictures: there is no recipe.yaml",
        ),
        (
            ["tokenizer", "eval", "no.safetensors"],
            "error: no.safetensors: there is no such file",
        ),
    ],
)
def test_messages(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert tells(capsys.readouterr().err, f"... {message}")


def test_large_arrays_are_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3run.picture_arrays.MAX_IN_MEMORY", 100)
    array = _empty((7, 5, 3))
    assert isinstance(array, np.memmap)
    array[:] = 7
    assert int(array.sum()) == 7 * 105


def test_large_arrays_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported at once: writing to a mapped file without blocks would end the process."""

    def full(file: int, offset: int, num_bytes: int) -> None:
        assert num_bytes == 7 * 5 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cm3run.picture_arrays.MAX_IN_MEMORY", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left on device"):
        _empty((7, 5, 3))
