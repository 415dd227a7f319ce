"""`cm3 start`: the recipe and its reasons, the sheet, too many bad pictures, a trial."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3apps.cli.tune import tuning_recipe
from cm3apps.start.choices import Chosen, Codes, Trial, own_codes, recipe_text
from cm3apps.start.command import _trial_lines
from cm3apps.start.survey import Survey, reader_of
from cm3core.images import open_image
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3run.evaluation.kept import Kept
from picture_files import picture, write


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    files = {f"noise {name}.png": picture(place) for place, name in enumerate("abcdefgh")}
    return write(tmp_path / "own", dict(files))


def test_drawings_that_would_become_large_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In UTF-16, which has no bytes `<!ENTITY`: each of these 31 kB is 16 million letters."""
    text = f"""<!DOCTYPE svg [<!ENTITY a "{"M0 0h1 " * 1500}">]>
        <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="{"&a;" * 1600}"/></svg>"""
    write(tmp_path / "own", {f"icon{number}.svg": text.encode("utf-16") for number in range(26)})
    begin = time.process_time()
    assert main(["start", str(tmp_path / "own"), "-o", str(tmp_path / "out")]) == 2
    assert time.process_time() - begin < 20
    said = capsys.readouterr().err
    assert "no picture can be read: declares entities or attributes, which is refused" in said
    assert "\n  next: leave it out" in said
    assert not (tmp_path / "out").exists()


def kept(*, lost: float) -> Kept:
    """Four pictures, and reconstructions of which this share is white."""
    pixels = np.full((4, 64, 64, 3), 255, np.uint8)
    pixels[:, 8:40, 8:40] = 0
    decoded = pixels.copy()
    decoded[: round(4 * lost)] = 255
    return Kept.of(pixels, decoded)


def chosen(pictures: Path, *, lost: float) -> Chosen:
    codes = [
        Codes(VQGANConfig(weights="bundled:icons64"), kept(lost=1)),
        Codes(VQGANConfig(), kept(lost=lost)),
    ]
    survey = Survey.of(reader_of(pictures), 0.25)
    return Chosen(survey, codes, own_codes(survey, codes, load_registry()), 60.0)


def test_the_recipe_takes_codes_that_show_the_pictures(tmp_path: Path, pictures: Path) -> None:
    registry, path = load_registry(), tmp_path / "mine.yaml"
    path.write_text(recipe_text(chosen(pictures, lost=0), "mine", registry))
    recipe = compose(str(path), registry=registry)
    recipe.check()
    assert getattr(recipe.image_tokenizer, "weights", "") == "bundled:emoji64"
    assert recipe.image_tokenizer == VQGANConfig()
    assert recipe.train.minutes == 60
    assert getattr(recipe.dataset, "split_by", "") == "look"
    assert getattr(recipe.dataset, "path", "") == str(pictures)
    assert recipe.embedder is recipe.reranker is recipe.upscaler is None
    assert recipe.flat()["sampler.temperature"] == 1.0


def test_the_recipe_trains_codes_where_none_show_the_pictures(
    tmp_path: Path, pictures: Path
) -> None:
    registry, path = load_registry(), tmp_path / "mine.yaml"
    path.write_text(text := recipe_text(chosen(pictures, lost=0.5), "mine", registry))
    assert "weights: null" in text
    assert "50% lose their subject), so codes are trained on them first" in text
    recipe = compose(str(path), registry=registry)
    recipe.check()
    codes = recipe.image_tokenizer
    assert isinstance(codes, VQGANConfig)
    assert codes.train_minutes == 20
    assert recipe.train.minutes == 40
    # 16 squares of each of the pictures above are not blank: 128 of eight pictures, eight for each of 16 centres
    assert (codes.encoder, codes.depth, codes.codebook_size) == ("squares", 2, 32)


def test_codes_are_as_many_as_the_pictures_can_teach(pictures: Path) -> None:
    """If nothing could be measured, as many as the recipe has; without the extra, no perceptual loss."""
    survey, registry = Survey.of(reader_of(pictures), 0.25), load_registry()
    nothing = Codes(VQGANConfig(), None)
    config = own_codes(survey, [nothing], registry)
    assert isinstance(config, VQGANConfig)
    assert config.codebook_size == 2048
    assert config.training.perceptual_weight > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3apps.start.choices.find_spec", lambda name: None)
        without = own_codes(survey, [nothing], registry)
    assert isinstance(without, VQGANConfig)
    assert without.training.perceptual_weight == 0


def test_every_choice_that_is_no_name_has_a_reason(pictures: Path) -> None:
    """Each section has a comment."""
    text = recipe_text(chosen(pictures, lost=0), "mine", load_registry())
    sections = [one for one in text.split("\n\n")[1:] if not one.startswith("embedder")]
    assert sections
    assert all("# " in one for one in sections)


def test_the_command(
    tmp_path: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["start", str(pictures), "--no-trial"]) == 0
    out = capsys.readouterr().out
    assert f"{pictures}: 8 pictures (folder)" in out
    assert "next: cm3 train own.yaml" in out
    assert "steps       pictures become recognisable from some 1,000 training steps on" in out
    assert open_image(tmp_path / "own-codes.png").shape[1] > 8 * 64
    assert main(["recipe", "check", "own.yaml"]) == 0


@pytest.mark.slow
def test_pictures_that_are_only_numbered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those in a folder with a name have its words; the others are counted, with what to do."""
    files = {f"mr_tree/IMG_{place:04}.png": picture(place) for place in range(4)}
    files |= {f"IMG_{place:04}.png": picture(place) for place in range(4, 7)}
    write(tmp_path / "own", files)
    out = tmp_path / "mine.yaml"
    assert main(["start", str(tmp_path / "own"), "--no-trial", "-o", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "such as 'mr tree'" in told
    assert (
        "3 captions have no word, as files and folders are only numbered, such as 'IMG_0004.png': no prompt"
        in told
    )
    assert (
        "Put them into folders that say what they show, or write captions.csv (image,text)" in told
    )
    write(
        tmp_path / "own",
        {"captions.csv": "image,text\n" + "".join(f"{one},a fox\n" for one in files)},
    )
    assert main(["start", str(tmp_path / "own"), "--no-trial", "-o", str(out)]) == 0
    assert "have no word" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_recipe_tunes_a_model(
    tmp_path: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way: the written recipe tunes the model that it was written for."""
    monkeypatch.chdir(tmp_path)
    command = ["start", str(pictures), "--tune", "bundled:emoji64", "--valid", "0.25"]
    assert main(command) == 0
    found = capsys.readouterr()
    assert "different words; bundled:emoji64 knows" in found.out
    assert "codes       bundled:emoji64, 256 a picture: median PSNR" in found.out
    assert "next: cm3 tune bundled:emoji64 own.yaml" in found.out
    assert found.err == ""
    assert "start_from" not in (tmp_path / "own.yaml").read_text()
    recipe = tuning_recipe("bundled:emoji64", "own.yaml", [], load_registry())
    assert (recipe.component_names["sampler"], recipe.flat()["sampler.temperature"]) == ("cfg", 1.0)
    assert recipe.flat()["sampler.guidance_scale"] == 1.2, "the other keys are the model's"
    assert compose("own.yaml", registry=load_registry()).dataset is not None, "cm3 eval reads it"
    short = ["train.minutes=null", "train.steps=1", "train.sample_every_minutes=null"]
    assert main(["tune", "bundled:emoji64", "own.yaml", "-o", "tuned", *short]) == 0
    assert (tmp_path / "tuned" / "checkpoints").is_dir()


def test_a_model_whose_codes_do_not_show_the_pictures(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise, in which no code is like another."""
    names = sorted(one.name for one in pictures.iterdir())
    write(pictures, {name: picture(place, size=(64, 64)) for place, name in enumerate(names)})
    command = ["start", str(pictures), "--tune", "bundled:icons64-tuned"]
    assert main([*command, "-o", str(tmp_path / "mine.yaml")]) == 0
    said = capsys.readouterr().err
    assert "note: these codes don't show your pictures, so no tuning can draw them;" in said


def test_a_recipe_for_a_model_that_is_not_there(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    assert main(["start", str(pictures), "--tune", "runs/none", "-o", str(out)]) == 2
    assert "runs/none" in capsys.readouterr().err
    assert not out.exists()


def test_too_many_bad_pictures(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(pictures, {"bad.png": b"no picture"})
    out = tmp_path / "mine.yaml"
    assert main(["start", str(pictures), "--no-trial", "-o", str(out)]) != 0
    found = capsys.readouterr()
    assert f"{pictures / 'bad.png'}: is not a picture" in found.out
    assert "1 of 9 pictures can't be read, have no caption or are blank, more than 5%" in found.err
    assert "or give --most-skipped 0.12" in found.err
    assert not out.exists()


def test_what_a_trial_says(pictures: Path) -> None:
    """By hand: 20 minutes of 2 s are 600 steps, 40 minutes of 0.5 s are 4,800."""
    told = dict(_trial_lines(chosen(pictures, lost=0.5), Trial(0.5, 90.0, 2.0, 3 << 30)))
    assert told == {
        "codes": "20 minutes: some 600 steps of 2.00 s, as measured here",
        "training": "40 minutes: some 4,800 steps of 0.50 s, as measured here",
        "before it": "1.5 minutes for image codes and retrieved documents",
        "memory": "3.0 GiB at most in this trial",
    }
