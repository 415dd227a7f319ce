"""The commands that draw, describe and repair pictures, with the toy model."""

from __future__ import annotations

import doctest
import json
import re
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3apps.cli._model import printable
from cm3apps.cli.infill import parse_box
from cm3apps.cli.opening import settings_of
from cm3core import images
from cm3core.errors import GenerationError
from cm3plugins.upscalers.lanczos import LanczosUpscaler
from cm3run import picture_files
from cm3run.checkpoint.words import TrainingWords
from cm3run.generation.engine import Engine
from cm3run.model import Model
from cm3run.model.loaded import Loaded
from cm3run.picture_files import file_names
from messages import tells
from toy_model import FirstRetriever, picture


def test_generate_writes_pictures_with_their_story(cm3, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cm3(
            "generate",
            "red",
            "blue",
            "--n",
            2,
            "--seed",
            7,
            "-o",
            out,
            "--set",
            "sampler.guidance_scale=1.2",
            "--show-retrieved",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert [str(out / f"{place:03d}.png") in printed for place in range(4)] == [True] * 4
    assert "retrieved 1: red (1.000) 'red'" in printed
    assert str(out / "grid.png") in printed
    facts = images.read_png_metadata(out / "003.png")
    assert (facts["prompt"], facts["recipe_hash"], facts["model"]) == (
        "blue",
        model.recipe.hash,
        "toy",
    )
    assert json.loads(facts["sampler"])["guidance_scale"] == 1.2
    assert json.loads(facts["retrieved"]) == ["red", "green"]
    again = model.generate("blue", 1, seed=int(facts["seed"]), guidance_scale=1.2)[0]
    assert np.array_equal(images.open_image(out / "003.png"), again.pixels)


def test_documents_that_take_turns_are_shown_once_each(cm3, model, tmp_path, monkeypatch, capsys):
    """Three pictures, two of which have the same in front: a line and a row of the sheet for each document."""
    monkeypatch.setitem(vars(model.components), "memory", FirstRetriever.memory)
    turns = ("num_retrieved=1", "num_alternatives=2", "alternative_margin=0.3")
    options = [part for key in turns for part in ("--set", f"retriever.{key}")]
    rows: list[str] = []
    monkeypatch.setattr(
        "cm3apps.cli.generate.write_retrieved",
        lambda _, shown: rows.extend(one.retrieved[0].id for one in shown),
    )
    wanted = ("generate", "red", "blue", "--n", 3, "-o", tmp_path, "--show-retrieved", *options)
    assert cm3(*wanted) == 0
    printed = [one for one in capsys.readouterr().out.splitlines() if ".png" not in one]
    own = ["  retrieved 1: red (1.000) 'red'", "  retrieved 1: green (0.750) 'green'"]
    assert printed == ["red", *own, "blue", *own]
    assert rows == ["red", "green"] * 2
    facts = [images.read_png_metadata(tmp_path / f"{place:03d}.png") for place in range(3)]
    assert [json.loads(one["retrieved"]) for one in facts] == [["red"], ["green"], ["red"]]


def test_drawings_are_cut_out_and_traced(cm3, model, tmp_path, capsys):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    out = tmp_path / "out"
    assert cm3("generate", "red", "--n", 1, "--transparent", "--svg", "-o", out) == 0
    printed = capsys.readouterr().out
    for name in ("000.png", "000-transparent.png", "000.svg"):
        assert str(out / name) in printed
    pixels = images.open_image(out / "000.png")
    assert images.open_alpha(out / "000-transparent.png") is not None
    assert np.abs(images.open_image(out / "000-transparent.png").astype(int) - pixels).max() <= 20
    assert images.read_png_metadata(out / "000-transparent.png")["prompt"] == "red"
    assert (out / "000.svg").read_text(encoding="utf-8").count('width="8" height="8"') == 1


@pytest.mark.slow
def test_a_set_is_named_for_its_things_and_zipped(cm3, model, tmp_path, capsys):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        assert (
            cm3(
                *("generate", "red", "Red", "green", "--style", "line", "--n", 1, "--seed", 7),
                *("--transparent", "--svg", "--zip", "-o", folder),
            )
            == 0
        )
    assert str(out / "set.zip") in capsys.readouterr().out
    with zipfile.ZipFile(out / "set.zip") as archive:
        assert archive.namelist() == [
            *(
                f"{name}{end}"
                for name in ("red", "Red-2", "green")
                for end in (".png", "-transparent.png", ".svg")
            ),
            "grid.png",
            "LICENSES",
        ]
        assert archive.read("green.svg") == (out / "002.svg").read_bytes()
        archive.extractall(tmp_path / "files")
    expected = model.generate(["red, line", "Red, line", "green, line"], 1, seed=7)
    for name, own in zip(("red", "Red-2", "green"), expected, strict=True):
        assert (images.open_image(tmp_path / "files" / f"{name}.png") == own.pixels).all()
    assert images.read_png_metadata(tmp_path / "files" / "red.png")["prompt"] == "red, line"
    assert (out / "set.zip").read_bytes() == (again / "set.zip").read_bytes()
    # two columns of pictures, enlarged to 192 pixels, and the gaps
    assert images.open_image(out / "grid.png").shape[1] == 3 * 16 + 2 * 192


def test_several_pictures_of_one_prompt_are_told_apart_in_a_zip(cm3, tmp_path):
    assert cm3("generate", "red", "--n", 2, "--zip", "-o", tmp_path / "out") == 0
    with zipfile.ZipFile(tmp_path / "out" / "set.zip") as archive:
        assert archive.namelist() == ["red.png", "red-2.png", "grid.png", "LICENSES"]


def test_an_empty_style_is_refused(cm3, tmp_path, capsys):
    assert cm3("generate", "red", "--style", " ", "-o", tmp_path / "out") == 2
    assert "--style: is empty\n  next: name a style, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@given(
    st.lists(
        st.text(max_size=80)
        | st.sampled_from(["a", "a transparent", "a 2", "a large 2", "é", "e\u0301"])
    )
)
@example(["\U00020000" * 60])
def test_names_of_files_are_safe_and_different(texts):
    names = file_names(texts)
    ends = ("", "-transparent", "-large")  # of what one picture is written as
    files = [unicodedata.normalize("NFC", name + end).casefold() for name in names for end in ends]
    assert len(set(files)) == len(files)
    assert all(len(f"{name}-transparent.png".encode()) <= 255 for name in names)
    assert all(re.fullmatch(r"[^\W_]+(-[^\W_]+)*", name) for name in names)


def test_examples_of_sets():
    assert doctest.testmod(picture_files).failed == 0


def test_ctrl_c_keeps_what_was_drawn(cm3, model, tmp_path, capsys, monkeypatch):
    want = model.generate("red", 3)
    monkeypatch.setattr(Engine, "batch_size", 2)
    decode, calls = Model.decode, []

    def interrupted(self, codes):
        calls.append(len(codes))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(self, codes)

    monkeypatch.setattr(Model, "decode", interrupted)
    assert cm3("generate", "red", "--n", 10**8, "-o", tmp_path) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.png", "00000001.png"]
    assert np.array_equal(images.open_image(tmp_path / "00000001.png"), want[1].pixels)
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/00000000.png\n{tmp_path}/00000001.png\n"
    assert shown.err.endswith(f"interrupted: 2 of 100000000 pictures are written to {tmp_path}\n")


def test_a_contact_sheet_shows_the_first_pictures_only(cm3, tmp_path, monkeypatch):
    monkeypatch.setattr("cm3apps.cli.generate.SHEET", 2)
    for number in (2, 3):
        assert cm3("generate", "red", "blue", "--n", number, "-o", tmp_path / str(number)) == 0
    assert np.array_equal(*(images.open_image(tmp_path / number / "grid.png") for number in "23"))


@pytest.mark.parametrize(("prompts", "scale"), [(["red"], 8), (["red", "--style", "thin"], 6)])
def test_a_contact_sheet_shows_enlarged_pictures(cm3, model, tmp_path, monkeypatch, prompts, scale):
    monkeypatch.setattr(model.components, "upscaler", LanczosUpscaler(4))
    assert cm3("generate", *prompts, "--n", 1, "--upscale", "-o", tmp_path) == 0
    large = images.open_image(tmp_path / "000-large.png")
    shown = images.open_image(tmp_path / "grid.png")
    assert large.shape == (32, 32, 3)
    tile = large.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = tile.shape[:2]
    places = [
        shown[y : y + height, x : x + width]
        for y in range(shown.shape[0] - height + 1)
        for x in range(shown.shape[1] - width + 1)
    ]
    assert any(np.array_equal(place, tile) for place in places)


def test_caption_and_infill_commands(cm3, model, tmp_path, capsys):
    path = tmp_path / "picture.png"
    images.save_png(path, picture(16, 20), {})
    assert cm3("caption", path, "--max-tokens", 3) == 0
    assert capsys.readouterr().out.removesuffix("\n") == printable(
        model.caption(path, max_tokens=3).text
    )
    assert (
        cm3(
            "infill",
            path,
            "--box",
            "6,4,10,12",
            "--text",
            "red",
            "-o",
            tmp_path / "new.png",
            "--decoded",
            tmp_path / "all.png",
        )
        == 0
    )
    assert np.array_equal(
        images.open_image(tmp_path / "new.png"), model.infill(path, (6, 4, 10, 12), "red").pixels
    )
    assert images.open_image(tmp_path / "all.png").shape == (8, 8, 3)
    assert images.read_png_metadata(tmp_path / "new.png")["box"] == "6,4,10,12"


def test_the_picture_that_is_read_is_never_replaced(cm3, tmp_path, capsys):
    path = tmp_path / "000.png"
    images.save_png(path, picture(16, 20), {})
    before = path.read_bytes()
    box = ("--box", "6,4,10,12", "--text", "red")
    for arguments in (
        ("infill", path, *box, "-o", path),
        ("infill", path, *box, "-o", tmp_path / "new.png", "--decoded", path),
        ("upscale", path, "-o", path),
    ):
        assert cm3(*arguments) == 2
        assert tells(capsys.readouterr().err, f"error: {path}: is the input file")
    two = tmp_path / "a" / ".." / "new.png"
    assert cm3("infill", path, *box, "-o", tmp_path / "new.png", "--decoded", two) == 2
    assert tells(capsys.readouterr().err, f"error: --decoded {two}: is also the file of -o, but")
    assert cm3("edit", path, "red", "-o", tmp_path, "--force") == 2
    assert tells(
        capsys.readouterr().err, f"error: {tmp_path}: has the input picture 000.png, which"
    )
    assert cm3("infill", path, *box, "-o", "/dev/null") == 2
    assert "is a device, a pipe or a socket" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["000.png"]


def test_what_no_model_was_tuned_for_is_refused(cm3, tmp_path, capsys):
    """No answer and no picture that means nothing, with exit code 0; unless it is asked for."""
    path = tmp_path / "picture.png"
    images.save_png(path, picture(16, 20), {})
    untuned = ("--model", "lab:icons64")
    step = "  next: tune one (docs/tuning.md), or give --force to run it on any model\n"
    for command, what, words in (("ask", "questions", "what is it?"), ("edit", "edits", "red")):
        out = ("-o", tmp_path / "out") if command == "edit" else ()
        assert cm3(command, path, words, *untuned, *out) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert re.fullmatch(
            rf"error: cm3 {command}: model '.*' was not tuned for {what}; its results "
            r"would be meaningless\n" + re.escape(step),
            shown.err,
        )
        assert not (tmp_path / "out").exists()
    short = ("--template", "{question} {answer}")
    assert cm3("ask", path, "red", "--force", *untuned, *short) == 0
    out = ("--n", 1, "-o", tmp_path / "out")
    assert cm3("edit", path, "red", "--force", "--truncate", *untuned, *out) == 0
    assert (tmp_path / "out" / "000.png").is_file()


def test_pictures_after_a_structure(cm3, model, tmp_path, capsys):
    path, out = tmp_path / "picture.png", tmp_path / "out"
    images.save_png(path, picture(16, 20), {})
    condition = ("--condition", "canny", path, "--model", "lab:icons64")
    assert cm3("generate", "red", *condition, "-o", out) == 2
    assert tells(
        capsys.readouterr().err, "error: cm3 generate --condition: model 'lab:icons64' was"
    )
    assert not out.exists()
    words = ("--force", "--truncate", "--n", 1, "--set", "condition.low=50", "-o", out)
    assert cm3("generate", "red", *condition, *words) == 0
    facts = images.read_png_metadata(out / "000.png")
    assert json.loads(facts["condition"]) == ["canny", str(path), {"low": 50}]
    [again] = model.generate(
        "red",
        1,
        condition=("canny", path, {"low": 50}),
        seed=int(facts["seed"]),
        force=True,
        truncate=True,
    )
    assert np.array_equal(images.open_image(out / "000.png"), again.pixels)
    boxes = ("--condition", "boxes", "bell at (10, 10) -> (40, 40)")
    assert cm3("generate", "red", *boxes, *words[:4], "-o", tmp_path / "boxes") == 0
    capsys.readouterr()
    assert cm3("generate", "red", *condition, "--force", "-o", tmp_path) == 2
    assert tells(
        capsys.readouterr().err, f"error: {tmp_path}: has the input picture picture.png, which"
    )
    assert cm3("generate", "red", "--set", "condition.low=50", "-o", out) == 2
    assert tells(
        capsys.readouterr().err, "error: --set condition: changes a condition, but none is"
    )
    long = ("--condition", "boxes", "x" * 9000, "--force", "-o", out)
    assert cm3("generate", "red", *long) == 2
    assert "has 0 boxes, only 0 of them well formed" in capsys.readouterr().err


def test_commands_report_bad_input(cm3, tmp_path, capsys):
    assert cm3("infill", tmp_path / "missing.png", "--box", "0,0,4,4") == 2
    assert str(tmp_path / "missing.png") in capsys.readouterr().err
    assert cm3("generate", "a", "--set", "temperature=1") == 2
    assert tells(capsys.readouterr().err, "error: --set temperature=1: is not sampler.KEY=VALUE")


@pytest.mark.parametrize(
    ("option", "place"),
    [
        (("--bank", "bank"), "--bank"),
        (("--retriever", "bm25"), "--retriever"),
        (("--set", "retriever.min_similarity=0.3"), "--set retriever"),
    ],
)
def test_how_to_retrieve_is_refused_where_nothing_is_retrieved(cm3, capsys, option, place):
    assert cm3("generate", "a", "--num-retrieved", "0", *option) == 2
    assert tells(
        capsys.readouterr().err, f"error: {place}: chooses how to retrieve ... --num-retrieved 0"
    )


def test_a_reranker_of_one_candidate_is_told_so(cm3, tmp_path, capsys):
    told = "note: --rerank has one candidate to choose from: give --candidates 2 or more\n"
    for number in (
        1,
        2,
    ):  # told before it turns out that no plugin of this model has such a reranker
        out = ("-o", tmp_path / "out", "--rerank", "none", "--candidates", number)
        assert cm3("generate", "a red square", *out) == 2
        assert (told in capsys.readouterr().err) == (number == 1)


def test_a_seed_of_an_upscaler_is_told_to_do_nothing(cm3, tmp_path, capsys):
    images.save_png(tmp_path / "small.png", np.zeros((4, 4, 3), np.uint8))
    arguments = (
        "upscale",
        tmp_path / "small.png",
        "upscaler=lanczos",
        "-o",
        tmp_path / "large.png",
    )
    assert cm3(*arguments) == 0
    assert capsys.readouterr().err == ""
    assert cm3(*arguments, "--seed", "3") == 0
    assert tells(
        capsys.readouterr().err,
        "note: --seed has no effect, because an upscaler uses no random numbers",
    )


def test_nothing_is_drawn_for_a_place_that_takes_no_files(
    cm3, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.delattr(Loaded, "engine")
    images.save_png(tmp_path / "file.png", picture(8, 8), {})
    wrong = f"{tmp_path / 'file.png'} is a file)\n  next: name a place where you may write\n"
    for arguments in (("generate", "a"), ("infill", tmp_path / "file.png", "--box", "0,0,4,4")):
        assert cm3(*arguments, "-o", tmp_path / "file.png" / "out") == 2
        assert (
            capsys.readouterr().err
            == f"error: {tmp_path / 'file.png' / 'out'}: can't be written ({wrong}"
        )


def test_a_terminal_obeys_no_model():
    assert (
        printable("a\x1b]0;title\x07 red\r\napple\x9b2J, één 🍎")
        == "a\\u001b]0;title\\u0007 red\\u000d apple\\u009b2J, één 🍎"
    )


def test_values_on_the_command_line():
    assert settings_of(
        ["sampler.temperature=0.5", "sampler.top_k=3", "sampler.null_prompt=mask_no_retrieved"],
        "sampler",
    ) == {"temperature": 0.5, "top_k": 3, "null_prompt": "mask_no_retrieved"}
    assert parse_box("1, 2,30,40") == (1, 2, 30, 40)
    with pytest.raises(GenerationError, match="--box 1,2,3: is not four whole numbers"):
        parse_box("1,2,3")


def test_words_that_training_never_saw_are_named(cm3, model, tmp_path, capsys, monkeypatch):
    assert cm3("generate", "red zebra", "-o", tmp_path / "a", "--n", 1) == 0
    assert capsys.readouterr().err == "", "a checkpoint without a list of words"
    monkeypatch.setattr(model, "words", TrainingWords.of(["red", "green"]))
    assert cm3("generate", "red zebra", "greem", "-o", tmp_path / "b", "--n", 1) == 0
    note = (
        "note: 'zebra' and 'greem' are not in the training captions, so the model has not learnt what they mean. "
        "Did you mean 'green'?\n"
    )
    assert capsys.readouterr().err == note
    assert cm3("generate", "Red, green", "-o", tmp_path / "c", "--n", 1) == 0
    assert capsys.readouterr().err == ""
    halves = np.repeat(np.uint8([0, 255]), 4)[:, None]  # of noise, a note would say that it is none
    images.save_png(tmp_path / "x.png", np.tile(halves, (8, 1, 3)))
    asked = ("ask", tmp_path / "x.png", "red zebra?", "--template", "{question}{answer}", "--force")
    for call in (
        ("edit", tmp_path / "x.png", "red zebra", "-o", tmp_path / "d", "--force", "--truncate"),
        asked,
    ):
        assert cm3(*call) == 0
        assert tells(capsys.readouterr().err, "note: 'zebra' is not")
