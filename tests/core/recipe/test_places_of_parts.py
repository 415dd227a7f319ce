"""Trained parts in recipes: a place instead of a component's name, in a file and on the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error, PluginError, RecipeError, TrustError
from cm3core.interfaces import DecoderConfig, ImageTokenizerConfig, TextTokenizerConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.plugins import PluginInfo, Registry
from cm3core.plugins.registry import ANYONE
from cm3core.recipe import Recipe, compose, recipe_from_yaml
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.places import is_place
from cm3core.recipe.recipe import files_of
from messages import tells


@dataclass(kw_only=True)
class GridConfig(ImageTokenizerConfig):
    """`later_keys` are not written with their defaults, so a stored section omits them."""

    outside: ClassVar = {"weights": Outside(READS, "its weights"), "note": TEXT}
    later_keys: ClassVar = ("depth",)
    side: int = 4
    depth: int = 1
    note: str = ""
    weights: str | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.side, self.side * self.depth

    @property
    def codebook_size(self) -> int:
        return 16

    def saved_in(self, folder: Path) -> Self:
        return dataclasses.replace(self, weights=str(folder / "grid.bin"))


@dataclass(kw_only=True)
class ClosedConfig(ImageTokenizerConfig):
    """No key names its files."""


@dataclass(kw_only=True)
class WordsConfig(TextTokenizerConfig):
    path: str | None = None
    size: int = 300


@dataclass(kw_only=True)
class PlainConfig(DecoderConfig):
    width: int = 8


def parts_registry() -> Registry:
    registry = Registry()
    registry.add(
        PluginInfo("fakes", "1", "tests"),
        {
            "image_tokenizer": {"grid": GridConfig, "closed": ClosedConfig},
            "text_tokenizer": {"words": WordsConfig},
            "decoder": {"plain": PlainConfig},
        },
        {},
    )
    return registry


REGISTRY = parts_registry()
BASE = """\
image_tokenizer: {name: grid, side: 2, depth: 3, note: of the base}
text_tokenizer: {name: words}
decoder: {name: plain}
vocabulary: {num_sentinels: 3}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


def made(*overrides: str, path: str = "base.yaml") -> Recipe:
    return compose(path, overrides, registry=REGISTRY)


def stored(folder: Path, text: str) -> Path:
    """A folder with a recipe, as commands write it."""
    folder.mkdir(parents=True)
    for name, content in files_of(recipe_from_yaml(text, REGISTRY), REGISTRY).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def trained(folder: Path, values: str = "side: 8, note: mine") -> Path:
    """What a command leaves that trained image codes."""
    weights = folder.absolute() / "w.bin"
    stored(folder, f"image_tokenizer: {{name: grid, {values}, weights: {weights}}}\n{REST}")
    weights.write_bytes(b"w")
    return folder


#: What the recipe of a trained part has beside it.
REST = "text_tokenizer: {name: words, size: 5}\nvocabulary: {num_text: 9}\n"


def a_run(folder: Path, step: int = 20) -> Path:
    """A run with one checkpoint."""
    text = (
        "image_tokenizer: {name: grid, side: 8, depth: 2, weights: /gone/w.bin}\n"
        "text_tokenizer: {name: words, size: 77}\n"
        "decoder: {name: plain, width: 16}\nvocabulary: {num_sentinels: 5}\n"
    )
    checkpoint = stored(folder / "checkpoints" / f"step-{step:08}", text)
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    (checkpoint / "image_tokenizer").mkdir()
    (checkpoint / "image_tokenizer" / "grid.bin").write_bytes(b"w")
    return checkpoint


def told(*overrides: str, path: str = "base.yaml") -> str:
    with pytest.raises(CM3Error) as caught:
        made(*overrides, path=path)
    return str(caught.value)


def test_name_keys_and_weights_come_from_the_place(place: Path) -> None:
    trained(place / "codes")
    recipe = made("image_tokenizer=codes")
    found = recipe.image_tokenizer
    assert isinstance(found, GridConfig)
    assert recipe.component_names["image_tokenizer"] == "grid"
    assert (found.side, found.note, found.weights) == (8, "mine", str(place / "codes" / "w.bin"))
    assert found.depth == 1, "not the base's: the section starts afresh"
    assert recipe.origins["image_tokenizer.side"] == "codes/recipe.yaml"
    assert recipe.text_tokenizer == WordsConfig(), "only the part is taken"
    assert recipe.vocabulary.num_text is None
    assert recipe.name == "base"


def test_keys_of_the_part_can_be_changed(place: Path) -> None:
    trained(place / "codes")
    (place / "mine.yaml").write_text(
        "extends: [./base.yaml]\nimage_tokenizer: {name: codes, note: changed}\n", encoding="utf-8"
    )
    (place / "short.yaml").write_text(
        "extends: [./base.yaml]\nimage_tokenizer: ./codes\n", encoding="utf-8"
    )
    in_file = made(path="./mine.yaml")
    on_line = made("image_tokenizer=codes", "image_tokenizer.note=changed")
    later = made("image_tokenizer.note=changed", path="./short.yaml")
    for recipe in (in_file, on_line, later):
        assert recipe.image_tokenizer == GridConfig(
            side=8, note="changed", weights=str(place / "codes" / "w.bin")
        )
    assert made(path="./short.yaml").name == "short"
    assert "no key 'nots'" in told("image_tokenizer=codes", "image_tokenizer.nots=1")


def test_a_composed_recipe_holds_no_place(place: Path) -> None:
    """What a run stores says everything, wherever it is read."""
    trained(place / "codes")
    recipe = made("image_tokenizer=codes")
    shutil.rmtree(place / "codes")
    again = recipe_from_yaml(recipe.to_yaml(), REGISTRY)
    assert (again, again.hash) == (recipe, recipe.hash)


@pytest.mark.slow
@given(note=st.text(max_size=20), side=st.integers(1, 9))
def test_a_place_means_what_its_keys_mean(
    tmp_path_factory: pytest.TempPathFactory, note: str, side: int
) -> None:
    """Also for texts that look like interpolations."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    plain = made(path=str(folder / "base.yaml"))
    config = GridConfig(side=side, note=note, weights=str(folder / "codes" / "w.bin"))
    wanted = dataclasses.replace(plain, image_tokenizer=config)
    (folder / "codes").mkdir()
    (folder / "codes" / "w.bin").write_bytes(b"w")
    try:
        for name, text in files_of(wanted, REGISTRY).items():
            (folder / "codes" / name).write_text(text, encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return  # no recipe holds it
    found = made(f"image_tokenizer={folder / 'codes'}", path=str(folder / "base.yaml"))
    assert found == wanted
    assert found.hash == wanted.hash


def test_a_folder_that_was_moved_or_copied(place: Path) -> None:
    """Its recipe still has the old paths, where other weights may be."""
    trained(place / "codes")
    shutil.copytree(place / "codes", place / "copy")
    (place / "codes").rename(place / "moved")
    trained(place / "codes", "side: 3")
    for name in ("copy", "moved"):
        found = made(f"image_tokenizer={name}").image_tokenizer
        assert isinstance(found, GridConfig)
        assert (found.side, found.weights) == (8, str(place / name / "w.bin"))


def test_a_file_of_the_folder(place: Path) -> None:
    trained(place / "codes")
    whole = made("image_tokenizer=codes")
    assert made("image_tokenizer=codes/w.bin") == whole
    assert made("image_tokenizer=codes/recipe.yaml") == whole
    (place / "codes" / "log.jsonl").write_text("", encoding="utf-8")
    message = told("image_tokenizer=codes/log.jsonl")
    assert tells(message, "command line: image_tokenizer=codes/log.jsonl: is not ... =codes")


def test_parts_of_a_model(place: Path) -> None:
    checkpoint = a_run(place / "run")
    for name in ("run", "run/checkpoints/step-00000020"):
        recipe = made(f"image_tokenizer={name}", f"decoder.width={1}")
        found = recipe.image_tokenizer
        assert found == GridConfig(
            side=8, depth=2, weights=str(checkpoint / "image_tokenizer" / "grid.bin")
        )
        assert recipe.decoder == PlainConfig(width=1)
        assert recipe.train.start_from is None
    assert made("text_tokenizer=run").text_tokenizer == WordsConfig(size=77)


def test_the_newest_checkpoint_counts(place: Path) -> None:
    a_run(place / "run", 20)
    newest = a_run(place / "run", 100)
    found = made("image_tokenizer=run").image_tokenizer
    assert isinstance(found, GridConfig)
    assert found.weights == str(newest / "image_tokenizer" / "grid.bin")


def test_a_decoder_comes_with_its_weights_and_the_meaning_of_its_ids(place: Path) -> None:
    a_run(place / "run")
    recipe = made("decoder=run", "decoder.context_length=64")
    assert recipe.decoder == PlainConfig(width=16, context_length=64)
    assert recipe.train.start_from == str(place / "run")
    assert recipe.text_tokenizer == WordsConfig(size=77)
    assert (recipe.vocabulary.num_sentinels, recipe.layout) == (5, None)
    own = made("decoder=run", "image_tokenizer=grid", "train.start_from=null")
    assert own.train.start_from is None, "the command line has the last word"
    trained(place / "codes")
    both = made("decoder=run", "image_tokenizer=codes")
    assert isinstance(both.image_tokenizer, GridConfig)
    assert both.image_tokenizer.note == "mine"


def test_a_place_that_is_replaced_is_not_looked_at(place: Path) -> None:
    (place / "lost.yaml").write_text(
        "extends: [./base.yaml]\nimage_tokenizer: {name: ./gone, note: lost}\n", encoding="utf-8"
    )
    afresh = made("image_tokenizer=grid", path="./lost.yaml").image_tokenizer
    assert afresh == GridConfig(), "a changed name replaces the section"
    assert made("image_tokenizer=null", path="./lost.yaml").image_tokenizer is None
    assert tells(told(path="./lost.yaml"), "lost.yaml: image_tokenizer=./gone: there is no file")


def test_a_component_is_found_before_a_folder(place: Path) -> None:
    trained(place / "grid", "side: 5")
    assert made("image_tokenizer=grid") == made(), "the base's"
    assert made("image_tokenizer=fakes/grid").image_tokenizer == made().image_tokenizer
    found = made("image_tokenizer=./grid").image_tokenizer
    assert isinstance(found, GridConfig)
    assert found.side == 5


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("grid", False),
        ("fakes/grid", False),
        ("girdd", False),
        ("fakes/girdd", False),
        ("${decoder.width}", False),
        ("runs/grid", True),
        ("./grid", True),
        ("/tmp", True),
        ("hf://somebody/model", True),
        ("bundled:model", True),
        (3, False),
        (None, False),
    ],
)
def test_what_looks_like_a_place(text: object, is_one: bool) -> None:
    assert is_place(text, "image_tokenizer", REGISTRY) is is_one


def test_text_of_somebody_else_names_no_place(place: Path) -> None:
    """A stored recipe is anybody's: its reading opens no further folder."""
    trained(place / "codes")
    text = "image_tokenizer: {name: ./codes}\n"
    with pytest.raises(PluginError, match="is loaded"):
        recipe_from_yaml(text, REGISTRY)
    with pytest.raises(PluginError, match="is loaded"):
        stored_recipe(text, REGISTRY, label="recipe.yaml", writer=ANYONE)


def test_what_a_part_names_outside_its_folder_needs_permission(place: Path) -> None:
    """Until the user gives the key, or permits the path."""
    trained(place / "codes")
    described = place / "codes" / "recipe.yaml"
    text = described.read_text(encoding="utf-8").replace("note: mine", "other: /etc/passwd")

    @dataclass(kw_only=True)
    class ReachingConfig(GridConfig):
        outside: ClassVar = {"other": Outside(READS, "another file")}
        other: str | None = None

        def build(self) -> None:  # type: ignore[override]  # only whether it is reached counts
            return None

    registry = Registry()
    kinds = {"text_tokenizer": {"words": WordsConfig}, "decoder": {"plain": PlainConfig}}
    registry.add(
        PluginInfo("fakes", "1", "tests"),
        {"image_tokenizer": {"grid": ReachingConfig}, **kinds},
        {},
    )
    described.write_text(text, encoding="utf-8")

    def build(*overrides: str, **options: list[str]) -> None:
        given = ["image_tokenizer=codes", *overrides]
        config = compose("base.yaml", given, registry=registry, **options).image_tokenizer
        assert config is not None
        config.build()

    (place / "base.yaml").write_text(BASE.replace(", note: of the base", ""), encoding="utf-8")
    with pytest.raises(TrustError) as caught:
        build()
    assert tells(caught.value, "codes/recipe.yaml: was not made by you ... /etc/passwd")
    build("image_tokenizer.other=/etc/passwd")
    build(trust_endpoints=["/etc/passwd"])


def test_there_is_no_such_part(place: Path) -> None:
    trained(place / "codes")
    a_run(place / "run")
    (place / "pictures").mkdir()
    for name in "abcd":
        (place / "pictures" / f"{name}.png").write_bytes(b"")
    cases = {
        "text_tokenizer=codes": "has no text_tokenizer; it has image_tokenizer (grid) ... "
        "write image_tokenizer=codes",
        "retriever=run": "has no retriever; it has text_tokenizer (words), image_tokenizer (grid), decoder (plain)",
        "image_tokenizer=./nowhere": "there is no file or folder ... correct the path",
        "image_tokenizer=runs/codes": "there is no file or folder ... and no plugin 'runs' is loaded",
        "image_tokenizer=pictures": "holds no trained part: pictures/recipe.yaml is missing (it holds "
        "a.png, b.png, c.png, ...)",
    }
    for override, words in cases.items():
        assert tells(told(override), f"command line: {override}: {words}")


def test_a_damaged_place(place: Path) -> None:
    trained(place / "codes")
    (place / "codes" / "w.bin").unlink()
    assert tells(
        told("image_tokenizer=codes"),
        "command line: image_tokenizer=codes: codes/recipe.yaml names no file that is in the folder",
    )
    described = place / "codes" / "recipe.yaml"
    for text, words in {
        "a: [": "codes/recipe.yaml, line 1: is not valid YAML",
        "image_tokenizer: {name: grid, sid: 3}": "codes/recipe.yaml: image_tokenizer.sid: ... 'side'",
        "image_tokenizer: {name: lost}": "codes/recipe.yaml: image_tokenizer.name: ...",
        "image_tokenizer: 3": "command line: image_tokenizer=codes: ...",
    }.items():
        described.write_text(text, encoding="utf-8")
        (place / "codes" / "components.json").unlink(missing_ok=True)
        assert tells(told("image_tokenizer=codes"), words)
    (place / "codes" / "components.json").write_text(json.dumps({"image_tokenizer": 3}))
    assert tells(told("image_tokenizer=codes"), "codes/components.json: does not say")


@pytest.mark.parametrize("text", ["a" * 300 + "/b", "a:" + "b" * 300, "~nobody-here/x", "x\0y:z"])
def test_an_impossible_place(place: Path, text: str) -> None:
    message = told(f"image_tokenizer={text}")
    assert "\n  next: " in message
    is_place(text, "image_tokenizer", REGISTRY)  # raises nothing


def test_a_component_without_keys_for_its_files(place: Path) -> None:
    checkpoint = stored(
        place / "run" / "checkpoints" / "step-00000001",
        f"image_tokenizer: {{name: closed}}\n{REST}",
    )
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    assert isinstance(made("image_tokenizer=run").image_tokenizer, ClosedConfig), "no files"
    (checkpoint / "image_tokenizer").mkdir()
    assert tells(
        told("image_tokenizer=run"),
        "command line: image_tokenizer=run: the image_tokenizer 'closed' can't be taken out of a model",
    )


def test_composing_from_a_folder_imports_no_torch(place: Path) -> None:
    """`cm3 recipe check tiny image_tokenizer=codes` stays fast."""
    code = (
        "import sys; from cm3core.recipe import compose; from cm3core.plugins import load_registry\n"
        "registry = load_registry()\n"
        "recipe = compose('tiny', ['image_tokenizer=bundled:emoji64'], registry=registry)\n"
        "assert recipe.image_tokenizer.weights == 'bundled:emoji64'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_address_is_downloaded_by_the_engine(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same cache as a model."""
    import cm3run.checkpoint.hub_models as hub_models

    checkpoint = a_run(place / "run")
    seen = []

    def download(model: object) -> Path:
        seen.append(model)
        return checkpoint

    monkeypatch.setattr(hub_models, "download_model", download)
    found = made("image_tokenizer=hf://somebody/model").image_tokenizer
    assert isinstance(found, GridConfig)
    assert (found.side, seen) == (8, ["hf://somebody/model"])
    with pytest.raises(RecipeError, match="has no retriever"):
        made("retriever=hf://somebody/model")
