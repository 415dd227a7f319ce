"""Building: the vocabulary from the tokenizers, one seed one decoder, and what a recipe lacks is
said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cm3core.errors import DeviceError, RecipeError, TokenizerError
from cm3core.interfaces import Decoder
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import Recipe, compose
from cm3run.build import Stored, build, split_or_reason, trained_spans
from cm3run.devices import memory_limit
from cm3run.machine_memory import group_limits
from messages import tells

PARTS = Path(__file__).parents[1] / "fixtures" / "train"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


def squares(registry: Registry, *overrides: str) -> Recipe:
    return compose(str(PARTS / "squares.yaml"), overrides, registry=registry)


def test_vocabulary_by_hand(registry: Registry) -> None:
    """The captions of five colours and four corners have 21 characters; with 16 digits for others and 4
    control tokens 41 text ids, then 5 colours."""
    components = build(squares(registry), registry, stage="train")
    num = len(set("red green blue black white corner 0123")) + 16
    assert components.text_tokenizer.vocab_size == num
    assert components.vocabulary.text == range(4, num + 4)
    assert components.vocabulary.num_image == 5
    assert components.vocabulary.num_sentinels == 8
    assert components.decoder.vocab_size == components.vocabulary.size
    assert components.memory is components.source
    assert components.embedder is None
    assert components.retriever is None
    assert components.objective.max_added_tokens > 0


def test_prompts_use_the_sentinels_that_the_objective_trains(registry: Registry) -> None:
    vocabulary = build(squares(registry), registry, stage="train").vocabulary
    for override, expected in (
        ("objective.max_spans=5", 5),
        ("objective.max_spans=99", 8),  # the vocabulary has no more
        ("objective=fim", 1),
        ("objective=causal", 0),
        ("objective=null", None),
    ):
        assert trained_spans(squares(registry, override), vocabulary) == expected


def test_given_size_of_the_text_range(registry: Registry) -> None:
    assert (
        build(
            squares(registry, "vocabulary.num_text=50"), registry, stage="train"
        ).vocabulary.text.stop
        == 50
    )
    with pytest.raises(RecipeError) as caught:
        build(squares(registry, "vocabulary.num_text=10"), registry, stage="train")
    num = len(set("red green blue black white corner 0123")) + 16
    assert tells(caught.value, f"vocabulary.num_text: is 10, but ... {num} ... 4 ... {num + 4}")


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone(registry: Registry) -> None:
    torch.manual_seed(5)
    first = build(squares(registry), registry, stage="train").decoder
    after = torch.rand(1)
    torch.manual_seed(6)
    second = build(squares(registry), registry, stage="train").decoder
    other = build(squares(registry, "train.seed=1"), registry, stage="train").decoder
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_missing_sections(registry: Registry) -> None:
    recipe = squares(registry)
    recipe.objective = recipe.attention = None
    with pytest.raises(RecipeError) as caught:
        build(recipe, registry, stage="train")
    assert tells(caught.value, "recipe squares: has no section 'objective' ... 'attention'")


def test_generation_needs_no_data(registry: Registry, tmp_path: Path) -> None:
    """A data set that can't be opened hurts only who asks for its documents."""
    trained = build(squares(registry), registry, stage="train")
    trained.text_tokenizer.save(tmp_path)
    components = build(
        squares(registry, "dataset.split=gone"),
        registry,
        stage="generate",
        stored=Stored(text_tokenizer=tmp_path),
    )
    assert components.vocabulary == trained.vocabulary
    with pytest.raises(ValueError, match="no split 'gone'"):
        _ = components.source


def test_split_or_reason(registry: Registry) -> None:
    components = build(squares(registry), registry, stage="train")
    held = split_or_reason(components, "held")
    assert not isinstance(held, str)
    assert len(held) == 5
    assert split_or_reason(components, "other") == "the squares have no split 'other'"


def test_too_large_for_the_memory(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = squares(registry)
    assert recipe.decoder is not None
    for words in (
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "CUDA out of memory.\nmore",
    ):
        monkeypatch.setattr(recipe.decoder, "build", refuse(RuntimeError(words)))
        with pytest.raises(DeviceError) as caught:
            build(recipe, registry, stage="train")
        assert tells(
            caught.value, f"recipe section decoder: does not fit ... {words.splitlines()[0]}"
        )
    monkeypatch.setattr(recipe.decoder, "build", refuse(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        build(recipe, registry, stage="train")


@pytest.mark.parametrize(
    ("override", "in_range"),
    [
        ("decoder.d_model=10000000", False),
        ("decoder.num_layers=10000 decoder.d_model=100000", True),
        ("decoder.context_length=1000000000000", False),
        ("vocabulary.num_text=1000000000000", False),
        ("vocabulary.num_reserved=1000000000000", False),
        ("decoder.d_ff=1000000000000", False),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    override: str, in_range: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = squares(registry, *override.split())
    assert recipe.decoder is not None
    if in_range:
        recipe.check()
    else:
        with pytest.raises(RecipeError, match="must be at most"):
            recipe.check()
    monkeypatch.setattr(recipe.decoder, "build", refuse(AssertionError("built")))
    with pytest.raises(
        RecipeError,
        match=r"^recipe section decoder: its weights alone take [\d,]+ GB \([\d,]+ parameters in ",
    ):
        build(recipe, registry, stage="train")


def test_the_memory_that_a_variable_says(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cpu = squares(registry), torch.device("cpu")
    monkeypatch.setenv("CM3_MEMORY_GB", "0.0001")
    assert memory_limit(cpu) == 100_000
    with pytest.raises(RecipeError) as caught:
        build(recipe, registry, stage="train")
    number = sum(
        parameter.numel()
        for parameter in build(recipe, registry, stage="train", device="meta").decoder.parameters()
    )
    assert tells(
        caught.value, f"recipe section decoder: its weights alone take 0 GB ... {number:,}"
    )
    monkeypatch.setenv("CM3_MEMORY_GB", "1e9")
    build(recipe, registry, stage="train")
    monkeypatch.setenv("CM3_MEMORY_GB", "much")
    with pytest.raises(DeviceError) as wrong:
        memory_limit(cpu)
    assert tells(wrong.value, "CM3_MEMORY_GB=much: is not a ... GB ... GB ... as 64")


def test_limits_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions; those of the groups above count too, "max" is none, and a path that isn't
    mounted here is passed over."""
    mounted, groups = tmp_path / "cgroup", tmp_path / "groups"
    for path, value in {
        "memory.max": "9000",
        "a/memory.max": "700",
        "a/b/memory.max": "max",
        "memory/memory.limit_in_bytes": "800",
        "memory/c/memory.limit_in_bytes": "600",
    }.items():
        (mounted / path).parent.mkdir(parents=True, exist_ok=True)
        (mounted / path).write_text(f"{value}\n")
    for text, limits in {
        "0::/a/b\n": [700, 9000],
        "0::/\n": [9000],
        "0::/elsewhere\n": [9000],
        "1:cpu:/a\n": [],
        "1:cpu:/\n4:hugetlb,memory:/c/d\n": [600, 800],
    }.items():
        groups.write_text(text)
        assert group_limits(groups, mounted) == limits
    assert group_limits(tmp_path / "no such file", mounted) == []
    monkeypatch.delenv("CM3_MEMORY_GB", raising=False)
    limit = memory_limit(torch.device("cpu"))
    assert limit is not None
    assert 10**8 < limit <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse(error: Exception) -> Callable[..., Decoder]:
    def build_nothing(*_: object) -> Decoder:
        raise error

    return build_nothing


def test_empty_data_set(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="split 'train' has no usable document"):
        build(squares(registry, "dataset.num_documents=0"), registry, stage="train")


@pytest.mark.parametrize("spoiled", ["missing", "folder", "bytes"])
def test_a_tokenizers_damaged_files_are_reported(
    registry: Registry, tmp_path: Path, spoiled: str
) -> None:
    """Whoever wrote `load` thought of files that are whole."""
    file = tmp_path / "characters.txt"
    if spoiled == "folder":
        file.mkdir()
    if spoiled == "bytes":
        file.write_bytes(b"a\xff")
    with pytest.raises(TokenizerError) as caught:
        build(squares(registry), registry, stage="generate", stored=Stored(text_tokenizer=tmp_path))
    assert caught.value.place == str(tmp_path)
    assert caught.value.cause.startswith("can't be read as the text_tokenizer (")
    assert caught.value.next_step == "copy the whole folder again from its source"
