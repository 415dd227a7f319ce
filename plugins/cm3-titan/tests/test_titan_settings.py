"""Which recipes torchtitan trains, and its own settings. Without torchtitan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from cm3apps.cli.main import main
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from messages import tells

pytest.importorskip("cm3titan", reason="needs pip install ./plugins/cm3-titan")

from cm3titan.settings import Setting, apply_settings, check_recipe


@dataclass
class Section:
    degree: int = 1
    ratio: float | None = None
    mode: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    on: bool = False

    def __post_init__(self) -> None:
        if self.degree > 8:
            raise ValueError("degree is at most 8")


@dataclass
class Config:
    parallelism: Section = field(default_factory=Section)
    lr: float = 0.0


def test_settings_are_read_and_set() -> None:
    config = Config()
    texts = ["degree=4", "ratio=2", "mode=b", "names=[x, y]", "on=true"]
    apply_settings(config, [Setting.read(f"parallelism.{text}") for text in texts])
    assert config.parallelism == Section(4, 2, "b", ["x", "y"], True)
    apply_settings(config, [Setting.read("parallelism.ratio=null")])
    assert config.parallelism.ratio is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensor=2", "--titan tensor=2: is not SECTION.KEY=VALUE ... write it like parallelism."),
        ("parallelism.degree", "--titan parallelism.degree: is not SECTION.KEY=VALUE"),
        ("parallelism.degree=[", "--titan parallelism.degree=[: is not SECTION.KEY=VALUE"),
        ("optimizer.lr=1", "--titan optimizer.lr: 'optimizer' is not a section of torchtitan that"),
        (
            "training.steps=4",
            "--titan training.steps: is decided by the recipe ... set train.steps",
        ),
        ("parallelism.spmd_backend=x", "... is always the same here ... leave it out"),
        ("parallelism.degre=2", "... 'degre' is not a key ... did you mean 'degree'?"),
        ("parallelism.more.degree=2", "... 'more' is not a section"),
        ("parallelism.degree=true", "... is True, expected int"),
        ("parallelism.degree=2.5", "... is 2.5, expected int"),
        ("parallelism.mode=c", "... is 'c', expected 'a' or 'b'"),
        ("parallelism.names=[1]", "... is [1], expected list"),
        ("parallelism.degree=9", "... is refused by torchtitan: degree is at most 8"),
    ],
)
def test_wrong_settings(text: str, words: str) -> None:
    config = Config()
    with pytest.raises(RecipeError) as info:
        apply_settings(config, [Setting.read(text)])
    assert tells(info.value, words)
    assert config == Config()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["decoder=llama"], "decoder: is 'llama', expected 'cm3leon' ... train it with cm3 train"),
        (["decoder.dropout=0.1"], "decoder.dropout: is 0.1, but torchtitan needs 0.0"),
        (["decoder.token_shift=true"], "decoder.token_shift: is True, but torchtitan needs False"),
        (["train.optimizer=muon"], "train.optimizer: is 'muon', but torchtitan needs 'adamw'"),
        (
            ["train.steps=null", "train.minutes=2"],
            "train.minutes: is 2.0, but torchtitan needs null ... set train.steps",
        ),
        (["train.patience=3"], "train.patience: is 3, but torchtitan needs 0"),
    ],
)
def test_recipes_that_it_does_not_train(overrides: list[str], words: str) -> None:
    recipe = compose("tiny", overrides, registry=load_registry())
    with pytest.raises(RecipeError) as info:
        check_recipe(recipe)
    assert tells(info.value, words)


def test_the_shipped_sizes_are_trained() -> None:
    registry = load_registry()
    for name in ("tiny", "cm3leon-350m", "cm3leon-760m", "cm3leon-7b"):
        assert check_recipe(compose(name, registry=registry)).num_layers


def test_without_torchtitan_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import metadata

    from cm3titan import command

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(command, "version", missing)
    assert main(["titan", "tiny", "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert tells(error, "... torchtitan is not installed ... pip install 'cm3titan[torchtitan]'")
    assert not (tmp_path / "run").exists()
