"""Every shipped recipe, and what the paper says of its."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose, list_recipes, recipe_from_yaml
from cm3core.recipe.library import description, header, recipes_directory
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary

SHIPPED = sorted(recipes_directory().glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_composes_and_is_possible(path: Path) -> None:
    registry = load_registry()
    recipe = compose(path.stem, registry=registry)
    recipe.check()
    assert recipe_from_yaml(recipe.to_yaml(), registry) == recipe
    assert set(recipe.origins.values()) >= {path.name}


@pytest.mark.parametrize(
    "path", [*SHIPPED, *(recipes_directory() / "base").glob("*.yaml")], ids=lambda path: path.stem
)
def test_every_shipped_recipe_opens_with_what_a_reader_needs(path: Path) -> None:
    lines = header(path)
    assert lines[0].startswith(f"{path.stem}: "), "line 1: `# NAME: what it is`"
    assert 10 <= len(description(path)) <= 120
    for label in ("Hardware:", "Command: cm3 ", "Overrides:"):
        assert any(line.startswith(label) for line in lines), (
            f"the header has no line `# {label} ...`"
        )


def test_the_papers_sizes() -> None:
    """Spec section 5: layers, width, heads, learning rate; 8 * 2 ** 20 tokens a step for the token
    budget of table 3."""
    registry = load_registry()
    table = {
        "350m": (24, 1024, 16, 4096, 6e-4, 1.4e12),
        "760m": (24, 1536, 16, 6144, 5e-4, 1.9e12),
        "7b": (32, 4096, 32, 16384, 1.2e-4, 2.4e12),
    }
    for size, (layers, width, heads, feed_forward, rate, tokens) in table.items():
        recipe = compose(f"cm3leon-{size}", registry=registry)
        decoder, train = recipe.flat(), recipe.train
        assert [
            decoder[f"decoder.{key}"]
            for key in ("num_layers", "d_model", "num_heads", "d_ff", "context_length")
        ] == [layers, width, heads, feed_forward, 4096]
        batch = train.batch_rows * train.accumulate * 4096
        assert (batch, train.learning_rate, train.warmup_steps, train.clip_norm) == (
            8 * 2**20,
            rate,
            1500,
            1.0,
        )
        assert (train.schedule, train.final_learning_rate_fraction, train.betas) == (
            "polynomial",
            0.1,
            [0.9, 0.98],
        )
        assert train.steps is not None
        assert abs(train.steps * batch - tokens) <= batch
        assert (
            recipe.vocabulary.num_text,
            recipe.vocabulary.num_reserved,
            recipe.vocabulary.num_sentinels,
        ) == (56320, 1024, 512)
        assert recipe.image_tokenizer is not None
        assert (recipe.image_tokenizer.codebook_size, recipe.image_tokenizer.grid) == (
            8192,
            (32, 32),
        )
        assert recipe.retriever is not None
        assert recipe.retriever.num_retrieved == 2
        with pytest.raises(RecipeError, match="too short for 4 pictures of 32 x 32 codes"):
            compose(f"cm3leon-{size}", ["retriever.num_retrieved=3"], registry=registry).check()


def test_the_papers_retrieval() -> None:
    """Spec section 4."""
    values = compose("cm3leon-350m", registry=load_registry()).flat()
    paper = {
        "name": "dense",
        "query": "union",
        "num_ranks": 4,
        "max_similarity": 0.9,
        "max_redundancy": 0.9,
        "prefer_both": True,
        "query_dropout": 0.2,
    }
    assert {key: values[f"retriever.{key}"] for key in paper} == paper


@pytest.mark.parametrize(("size", "millions"), [("350m", 374), ("760m", 787), ("7b", 6_730)])
def test_the_papers_parameter_counts(size: str, millions: int) -> None:
    """Spec section 5, row "params tied, 66k vocab"; built on the meta device, so nothing is
    allocated."""
    import torch

    recipe = compose(f"cm3leon-{size}", registry=load_registry())
    assert recipe.decoder is not None
    assert recipe.attention is not None
    assert recipe.image_tokenizer is not None
    assert recipe.vocabulary.num_text is not None
    vocabulary = CM3LeonVocabulary(
        recipe.vocabulary.num_text,
        recipe.image_tokenizer.codebook_size,
        recipe.vocabulary.num_sentinels,
        recipe.vocabulary.num_reserved,
        recipe.vocabulary.multiple_of,
    )
    with torch.device("meta"):
        decoder = recipe.decoder.build(
            vocabulary, recipe.attention.build(), recipe.image_tokenizer.grid
        )
    assert isinstance(decoder, torch.nn.Module)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.002)
    assert count == recipe.decoder.num_parameters(vocabulary, recipe.image_tokenizer.grid)


def test_listing_needs_neither_plugins_nor_omegaconf() -> None:
    script = (
        "import sys\nfrom cm3core.recipe import list_recipes\nassert len(list_recipes()) > 3\n"
        "print(sorted({'torch', 'numpy', 'omegaconf', 'pluggy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_descriptions_are_one_line() -> None:
    for recipe in list_recipes():
        assert recipe.description
        assert "\n" not in recipe.description
    assert "cm3leon-base" not in [recipe.name for recipe in list_recipes()]


def test_the_modern_decoder_costs_what_the_papers_does() -> None:
    """Per token, by the matrices of its layers; everything but the decoder and the z loss is equal."""
    registry = load_registry()
    paper, modern = (compose(f"cm3leon-{name}", registry=registry) for name in ("350m", "modern"))
    vocabulary, grid = CM3LeonVocabulary(num_text=56_320, num_image=8_192), (32, 32)
    assert paper.decoder is not None
    assert modern.decoder is not None
    counts = [
        recipe.decoder.num_parameters(vocabulary, grid) - 1024 * vocabulary.size
        for recipe in (paper, modern)
    ]
    assert counts[1] / counts[0] == pytest.approx(1, abs=0.03)
    differing = {
        key
        for key, value in modern.flat().items()
        if paper.flat().get(key) != value and not key.startswith("decoder.")
    }
    assert differing == {"train.z_loss"}
