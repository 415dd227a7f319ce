"""Recipe -> objects that belong together, in one fixed order. Whoever trains a decoder or generates
with one takes its components from here; a single one (a data set to look at, an upscaler to
measure) is built by its config alone.

What a stage does not need is built when it is first asked for: a model draws pictures without the
data it was trained on, unless retrieved documents are wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cm3core.bank import Manifest, MemoryBank, Tools
from cm3core.bank.manifest import MANIFEST
from cm3core.config.schema import to_plain
from cm3core.errors import CM3Error, DeviceError, RecipeError, TokenizerError
from cm3core.generation.device_memory import check_weights_fit
from cm3core.generation.likelihood import Likelihood
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.recipe import recipe_from_yaml
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import NUM_CONTROL, Vocabulary

if TYPE_CHECKING:
    from cm3core.bank.manifest import Maker
    from cm3core.interfaces import (
        AttentionBackend,
        Decoder,
        DocumentSource,
        Embedder,
        ImageTokenizer,
        ImageTokenizerConfig,
        MaskingObjective,
        Reranker,
        Retriever,
        Sampler,
        TextTokenizer,
        Upscaler,
    )
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: Words of torch's allocators (CPU, CUDA) when there is no memory; there is no error class for the
#: CPU's.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")

#: Sections a recipe must have for a stage.
NEEDED = {
    "train": ("dataset", "text_tokenizer", "image_tokenizer", "objective", "attention", "decoder"),
    "generate": ("text_tokenizer", "image_tokenizer", "attention", "decoder"),
}


@dataclass(eq=False)
class Components:
    """What a recipe builds. `source`, `memory`, `embedder`, `retriever`, `sampler`, `reranker` and
    `upscaler` are built on first use, the rest at once.

    Args:
        recipe: where the configs are.
        registry: where they came from; its plugins' versions are stored with checkpoints.
        text_tokenizer, image_tokenizer, vocabulary, serializer, attention, decoder: built, in this
            order.
    """

    recipe: Recipe
    registry: Registry
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizer
    vocabulary: Vocabulary
    serializer: Serializer
    attention: AttentionBackend
    decoder: Decoder

    @cached_property
    def source(self) -> DocumentSource:
        """The data set, split as the recipe says."""
        source: DocumentSource = section(self.recipe, "dataset").build()
        return source

    @cached_property
    def memory(self) -> DocumentSource:
        """The documents that can be retrieved: those of the recipe's bank, or those trained on.

        Raises:
            DataError: the bank can't be opened, or has codes of another image tokenizer.
        """
        folder = None if self.recipe.retriever is None else self.recipe.retriever.bank
        if folder is None:
            return self.source
        bank = MemoryBank.open(folder)
        bank.check_tokenizer(self.image_tokenizer)
        return bank

    @cached_property
    def embedder(self) -> Embedder | None:
        """The embedder, None when the recipe has none."""
        return None if self.recipe.embedder is None else self.recipe.embedder.build()

    @cached_property
    def retriever(self) -> Retriever | None:
        """The retriever over `memory`, None when the recipe has none."""
        return (
            None
            if self.recipe.retriever is None
            else self.recipe.retriever.build(self.memory, self.embedder)
        )

    @cached_property
    def objective(self) -> MaskingObjective:
        """The masking objective."""
        objective: MaskingObjective = section(self.recipe, "objective").build(self.vocabulary)
        return objective

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler."""
        sampler: Sampler = section(self.recipe, "sampler").build()
        return sampler

    @property
    def likelihood(self) -> Likelihood:
        """How probable given contents are under the decoder, texts of prompts cut as in
        training."""
        return Likelihood(
            self.decoder,
            self.serializer,
            self.vocabulary,
            max_text_tokens=self.recipe.data.max_text_tokens,
        )

    @cached_property
    def reranker(self) -> Reranker | None:
        """The reranker, None when the recipe has none."""
        config = self.recipe.reranker
        return (
            None
            if config is None
            else config.build(embedder=self.embedder, likelihood=self.likelihood)
        )

    @cached_property
    def upscaler(self) -> Upscaler | None:
        """The upscaler, None when the recipe has none."""
        return None if self.recipe.upscaler is None else self.recipe.upscaler.build()

    def split(self, name: str) -> DocumentSource:
        """Another split of the data set, e.g. "comp". Raises what the data set raises when it has
        no such split."""
        config = section(self.recipe, "dataset")
        source: DocumentSource = replace(config, split=name).build()
        return source

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint stores to recognise the parts that decide the meaning of ids."""
        return {
            "text_tokenizer": self.text_tokenizer.fingerprint,
            "image_tokenizer": self.image_tokenizer.fingerprint,
            "vocabulary": self.vocabulary.fingerprint,
        }


def section(recipe: Recipe, kind: str) -> Any:
    """The config of `kind`; raises `RecipeError` when the recipe has no such section."""
    config = getattr(recipe, kind)
    if config is None:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"has no section {kind!r}",
            f"add '{kind}: {{name: ...}}' to the recipe",
        )
    return config


def build(
    recipe: Recipe,
    registry: Registry,
    *,
    stage: str,
    tokenizer_folder: Path | None = None,
    image_tokenizer_folder: Path | None = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Components:
    """Build what `stage` needs, in one order: data set, tokenizers, vocabulary, serializer,
    attention, decoder.

    Args:
        recipe: composed and checked.
        registry: the plugins that it was composed with.
        stage: "train" (data set and objective too) or "generate".
        tokenizer_folder: a checkpoint's folder `text_tokenizer`. None: the recipe's file, or
            trained on the data set's texts.
        image_tokenizer_folder: a checkpoint's folder `image_tokenizer`. None, or not there: what
            the recipe says.
        device: where the decoder lives.
        seed: of the decoder's first weights; None: the recipe's `train.seed`. Torch's global
            generator stays as it was.

    Raises:
        RecipeError: a section is missing, `vocabulary.num_text` is too small for the tokenizer, or
            the weights exceed the memory.
    """
    if missing := [kind for kind in NEEDED[stage] if getattr(recipe, kind) is None]:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"has no section {', '.join(map(repr, missing))}, needed to {stage}",
            f"add '{missing[0]}: {{name: ...}}' to the recipe",
        )
    source: DocumentSource | None = section(recipe, "dataset").build() if stage == "train" else None
    if source is not None and len(source) == 0:
        split = section(recipe, "dataset").split
        first = (
            f"; the first bad record is {source.skipped[0].place}: {source.skipped[0].cause}"
            if source.skipped
            else ""
        )
        raise RecipeError(
            f"recipe {recipe.name}, section dataset",
            f"split {split!r} has no usable document{first}",
            "run 'cm3 data validate' to see why records are skipped",
        )
    if tokenizer_folder is not None:
        with _readable_files("text_tokenizer", tokenizer_folder):
            text_tokenizer: TextTokenizer = section(recipe, "text_tokenizer").load(tokenizer_folder)
    else:
        text_tokenizer = section(recipe, "text_tokenizer").build(
            None if source is None else source.texts()
        )
    image_tokenizer = _image_tokenizer(section(recipe, "image_tokenizer"), image_tokenizer_folder)
    vocabulary = vocabulary_of(recipe, text_tokenizer, image_tokenizer)
    check_weights_fit(
        section(recipe, "decoder"), vocabulary, image_tokenizer.grid, torch.device(device)
    )
    serializer = Serializer(vocabulary, text_tokenizer, image_tokenizer.grid)
    attention: AttentionBackend = section(recipe, "attention").build()
    with _fitting_memory("decoder"), torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(recipe.train.seed if seed is None else seed)
        decoder: Decoder = section(recipe, "decoder").build(
            vocabulary, attention, image_tokenizer.grid
        )
    components = Components(
        recipe,
        registry,
        text_tokenizer,
        image_tokenizer,
        vocabulary,
        serializer,
        attention,
        decoder,
    )
    if source is not None:
        components.source = source
    return components


@contextmanager
def _fitting_memory(part: str) -> Iterator[None]:
    """Say so when a part of the recipe is too large for the memory, in place of torch's words about
    its allocator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lines = str(error).splitlines()
        if isinstance(error, RuntimeError) and not any(
            words in str(error) for words in _OUT_OF_MEMORY
        ):
            raise
        raise DeviceError(
            f"recipe section {part}",
            f"does not fit into memory ({lines[0] if lines else 'MemoryError'})",
            "choose smaller sizes, or a larger machine",
        ) from error


def vocabulary_of(
    recipe: Recipe, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer
) -> Vocabulary:
    """The table of ids that fits both tokenizers."""
    sizes = recipe.vocabulary
    needed = text_tokenizer.vocab_size + NUM_CONTROL
    num_text = needed if sizes.num_text is None else sizes.num_text
    if num_text < needed:
        raise RecipeError(
            "vocabulary.num_text",
            f"is {num_text}; the text tokenizer has {text_tokenizer.vocab_size} ids and "
            f"{NUM_CONTROL} are control tokens",
            f"use {needed} or more, or null for exactly that",
        )
    return Vocabulary(
        num_text,
        image_tokenizer.codebook_size,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
    )


def split_or_reason(components: Components, name: str) -> DocumentSource | str:
    """A split for validation, or why there is none: a data set without it is no reason to stop
    training."""
    try:
        source = components.split(name)
    except CM3Error as error:
        return error.cause
    return source if len(source) else "it has no documents"


def config_of(registry: Registry, kind: str, maker: Maker, *, place: str) -> Any:
    """The config of a component that a bank's manifest names, its values checked as a recipe's."""
    recipe = recipe_from_yaml(
        json.dumps({kind: {"name": maker.name, **maker.config}}), registry, label=place
    )
    return getattr(recipe, kind)


def tools_of(recipe: Recipe, image_tokenizer_folder: Path | None = None) -> Tools:
    """What a memory bank is made with, as a recipe says.

    Args:
        recipe: has sections embedder and image_tokenizer.
        image_tokenizer_folder: see `build`.
    """
    embedder, tokenizer = section(recipe, "embedder"), section(recipe, "image_tokenizer")
    embedder.check()
    tokenizer.check()
    return Tools(
        embedder.build(),
        _image_tokenizer(tokenizer, image_tokenizer_folder),
        recipe.component_names["embedder"],
        to_plain(embedder),
        recipe.component_names["image_tokenizer"],
        to_plain(tokenizer),
    )


def bank_tools(folder: str | Path, registry: Registry) -> Tools:
    """What a bank was made with, built again by its manifest and the files in it.

    Raises:
        DataError: no bank, or what is built here is not what it was made with.
        PluginError, RecipeError: a component is not installed, or has other keys now.
    """
    folder = Path(folder).expanduser()
    manifest = Manifest.read(folder)
    makers = {"embedder": manifest.embedder, "image_tokenizer": manifest.image_tokenizer}
    values = {kind: {"name": maker.name, **maker.config} for kind, maker in makers.items()}
    tools = tools_of(
        recipe_from_yaml(json.dumps(values), registry, label=str(folder / MANIFEST)),
        folder / IMAGE_TOKENIZER,
    )
    bank = MemoryBank.open(folder)
    bank.check_embedder(tools.embedder)
    bank.check_tokenizer(tools.image_tokenizer)
    return tools


def _image_tokenizer(config: ImageTokenizerConfig, folder: Path | None) -> ImageTokenizer:
    """The image tokenizer that was saved in a folder, or that the config builds where there is no
    such folder."""
    with _fitting_memory("image_tokenizer"):
        if folder is None or not folder.is_dir():
            return config.build()
        with _readable_files("image_tokenizer", folder):
            return config.load(folder)


@contextmanager
def _readable_files(kind: str, folder: Path) -> Iterator[None]:
    """Report what a component's `load` raises on missing or damaged files: they came with a
    checkpoint or a bank, and whoever wrote the component thought of files that are whole."""
    try:
        yield
    except CM3Error:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TokenizerError(
            str(folder),
            f"can't be read as the {kind} ({type(error).__name__}: {error})",
            "copy the whole again from where it came",
        ) from error
