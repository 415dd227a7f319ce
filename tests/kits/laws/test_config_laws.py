"""The laws of configs, which every kit has: each finds what is wrong in just that way, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cm3core.errors import RecipeError
from cm3core.interfaces import ModelParts, Sampler
from cm3core.interfaces.reach import READS, Outside
from cm3kits._config_laws import ConfigLaws, UnusedKeyWarning
from cm3kits._findings import LawBroken, difference, readable
from cm3kits.condition import ConditionContract
from cm3kits.extractor import ExtractorContract
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3kits.sampler import SamplerContract
from cm3kits.text_tokenizer import TextTokenizerContract
from cm3plugins.samplers.cfg import TopPSamplerConfig
from kit_mutants import assert_law_fails, cases
from messages import tells
from planted_mistakes import (
    Black,
    BlackConfig,
    DigitsConfig,
    ForgottenCondition,
    ForgottenPicture,
    LambdaConfig,
    MeansConfig,
    SortingConfig,
    SquaresConfig,
    planted,
)
from planted_promises import PROMISES


@dataclass(kw_only=True)
class StatesVectors(SquaresConfig):
    """States that codes have vectors: the tokenizer has none."""

    has_codebook: ClassVar[bool] = True


@dataclass(kw_only=True)
class StatesASequence(SquaresConfig):
    """States that pictures have no grid of codes."""

    has_codebook: ClassVar[bool] = False

    def offers(self) -> Mapping[str, bool]:
        return {"grid": False}


@dataclass(kw_only=True)
class NeedsVectorsSilently(TopPSamplerConfig):
    """Can't be built without vectors of codes, and doesn't say so."""

    def build_for(self, parts: ModelParts) -> Sampler:
        if parts.image_tokenizer.codebook() is None:
            raise RecipeError("sampler", "there are no vectors", "use others")
        return super().build_for(parts)


@dataclass(kw_only=True)
class NeedsVectorsInVain(TopPSamplerConfig):
    """Works without vectors of codes, and says that it doesn't."""

    needs_codebook: ClassVar[bool] = True


@dataclass(kw_only=True)
class NeedsAFile(SquaresConfig):
    """Args: weights: a file that `build` can't do without."""

    outside: ClassVar[Mapping[str, Outside]] = {"weights": Outside(READS, "its weights")}
    weights: str | None = __file__

    def build(self) -> Any:
        if self.weights is None:
            raise RecipeError("image_tokenizer.weights", "is null", "train them")
        return super().build()


@dataclass(kw_only=True)
class RefusesInVain(SquaresConfig):
    """Refuses a config that can be built."""

    def check_ready(self) -> None:
        raise RecipeError("image_tokenizer", "is not ready", "wait")


KITS = {
    "sampler": SamplerContract,
    "text_tokenizer": TextTokenizerContract,
    "image_tokenizer": ImageTokenizerContract,
    "condition": ConditionContract,
}
MUTANTS: dict[str, list[Any]] = {
    "a_config_can_be_sent": [LambdaConfig, SortingConfig],
    "another_process_agrees": [
        planted(DigitsConfig, "fingerprint by hash()"),
        planted(DigitsConfig, "ids by the order of a set"),
        planted(SquaresConfig, "fingerprint by hash()"),
    ],
    "what_it_offers_is_true": [StatesVectors, StatesASequence],
    "what_it_requires_is_stated": [NeedsVectorsSilently, NeedsVectorsInVain],
    "what_build_needs_is_stated": [NeedsAFile, RefusesInVain],
    "every_key_counts": [ForgottenPicture, ForgottenCondition],
    "the_fingerprint_covers_every_key": [
        planted(DigitsConfig, "fingerprint without a key"),
        planted(SquaresConfig, "fingerprint without a key"),
    ],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_config_fails(law: str, wrong: Any) -> None:
    assert_law_fails(KITS[wrong.kind], law, {"config": wrong()})


def test_every_law_has_a_mutant() -> None:
    shared = {one.law for one in PROMISES}
    assert set(ConfigLaws.laws()) - set(MUTANTS) - shared == set()
    assert set(MUTANTS) <= set(ConfigLaws.laws())


@dataclass(kw_only=True)
class Kept(BlackConfig):
    """Args: size: kept, and read by nobody."""

    size: int = 4

    def build(self) -> Black:
        built = Black(self)
        built.calls = self.size  # type: ignore[attr-defined]  # nobody reads it
        return built


@dataclass(kw_only=True)
class Declared(Kept):
    """Args: size: of what is computed at once."""

    not_in_outputs: ClassVar[tuple[str, ...]] = ("size",)


def test_a_key_that_is_read_without_an_effect_is_a_warning() -> None:
    """It may decide speed: the law can't know."""
    with pytest.warns(UnusedKeyWarning, match="^Kept.size seems to change nothing: built it with"):
        ConditionContract.for_config(Kept())().test_every_key_counts()  # type: ignore[attr-defined]  # laws become tests


def test_a_key_that_is_declared_has_no_effect(recwarn: pytest.WarningsRecorder) -> None:
    ConditionContract.for_config(Declared())().test_every_key_counts()  # type: ignore[attr-defined]  # laws become tests
    assert not recwarn.list


@dataclass(kw_only=True)
class Writing(BlackConfig):
    """Args: folder: of a file that is written."""

    folder: str | None = None

    def build(self) -> Black:
        if self.folder is not None:
            Path(self.folder).mkdir(exist_ok=True)
        return Black(self)


def test_a_folders_other_names_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are tried are names of folders in a folder that is removed."""
    monkeypatch.chdir(tmp_path)
    contract: Any = ConditionContract.for_config(Writing())()
    with pytest.warns(UnusedKeyWarning, match="'folder': 'x', 'other'"):
        contract.test_every_key_counts()
    assert not list(tmp_path.iterdir())
    assert Path.cwd() == tmp_path


def message(kit: Any, config: Any, law: str) -> str:
    with pytest.raises(LawBroken) as caught:
        getattr(kit.for_config(config)(), f"test_{law}")()
    return str(caught.value)


def test_a_missing_key_of_a_fingerprint_is_told() -> None:
    config = planted(SquaresConfig, "fingerprint without a key")()
    told = message(ImageTokenizerContract, config, "the_fingerprint_covers_every_key")
    assert tells(told, "built it with ... 0.5 ... of 1 ... codes[0 ... `fingerprint`")


def test_an_unused_key_is_told() -> None:
    told = message(ConditionContract, ForgottenCondition(), "every_key_counts")
    assert tells(told, "built it with other values of the key 'forgotten': 2, 4, 1")
    assert tells(told, "...   next: use the key ... not_in_outputs ... 'forgotten'")


def test_a_config_that_building_changes_is_told_whatever_ran_before() -> None:
    """Another law may have built it, so that what is pickled is no longer what was given."""
    for earlier in ((), ("equal_makes_are_equal",)):
        contract: Any = TextTokenizerContract.for_config(SortingConfig())()
        for law in earlier:
            with suppress(LawBroken):
                getattr(contract, f"test_{law}")()
        with pytest.raises(LawBroken) as caught:
            contract.test_a_config_can_be_sent()
        assert tells(caught.value, "built the component, and looked at")


def test_another_shape_is_told() -> None:
    """Where all of an output is another one, not a place of it, a space is between."""
    config = planted(MeansConfig, "fingerprint without a key")()
    told = message(ExtractorContract, config, "the_fingerprint_covers_every_key")
    assert tells(told, "built it with ... 3 ... of 4")


def test_code_in_another_order_is_told() -> None:
    config = planted(SquaresConfig, "column by column, both ways")()
    told = message(ImageTokenizerContract, config, "codes_are_in_raster_order")
    assert told.startswith(
        "changed one code, decoded, and looked where the picture changed\n"
        "  expected: raster order: place 1 is the second cell of the first row\n"
        "  got: column by column\n"
        "  law: codes_are_in_raster_order: "
    )


def test_a_difference_is_the_first_place() -> None:
    import numpy as np

    one, other = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int32)
    other[1, 1:] = 7
    found = difference({"a": [one]}, {"a": [other]})
    assert found is not None
    assert (found.where, found.expected, found.got) == (
        "['a'][0][1, 1] (2 of 6 values differ)",
        "7",
        "0",
    )
    assert difference([1.0, "a", None], [1.0 + 1e-9, "a", None], 1e-6) is None
    assert difference(float("nan"), float("nan")) is None
    text = difference("abcd", "abxd")
    assert text is not None
    assert (text.where, text.expected, text.got) == ("letter 2", "'abxd'", "'abcd'")


def test_addresses_are_no_words() -> None:
    class Local: ...

    assert readable(repr(Local())) == "(a Local)"
    assert readable(repr([object(), len])) == "[(a object), <built-in function len>]"
    assert " at 0x" not in readable(repr([lambda: 0, Local().__init__, Local]))
