"""Recipe -> components that belong together, built in one fixed order. Training and generation get their components
here; a single component (a data set to look at, an upscaler to measure) is built from its config alone.

Parts that a stage does not need are built on first use: a model can generate without its training data, unless
documents are to be retrieved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cm3core.errors import CM3Error, DataError, RecipeError, TokenizerError
from cm3core.interfaces.dataset import TaskSource
from cm3core.interfaces.layout import VocabularyParts
from cm3core.interfaces.sampler import ModelParts
from cm3core.plugins.registry import built
from cm3core.recipe.recipe import MissingComponent, available, layout_config
from cm3core.sequence import TOKENS_PER_SPAN
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import VocabularySizes
from cm3run.bank import Memory, memory_of
from cm3run.devices import check_weights_fit
from cm3run.generation.likelihood import Likelihood
from cm3run.generation.weights import GenerationWeights, version_of, whole_of
from cm3run.life import NEEDED
from cm3run.machine_memory import fitting_memory
from cm3run.prompting import AsDecoded, AsItStands
from cm3run.tasks import title_of

if TYPE_CHECKING:
    from cm3core.interfaces import (
        AttentionBackend,
        Decoder,
        DocumentSource,
        Embedder,
        ImageTokenizer,
        ImageTokenizerConfig,
        Layout,
        MaskingObjective,
        Reranker,
        Retriever,
        Sampler,
        TextTokenizer,
        TextTokenizerConfig,
        Upscaler,
    )
    from cm3core.picture_form import PictureForm
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3core.vocab import Vocabulary
    from cm3run.prompting import Finisher, PromptRewriter
    from cm3run.trust import Trust


@dataclass(eq=False)
class Components:
    """The components of a recipe. `source`, `memory`, `embedder`, `retriever`, `prompt_rewriter`, `sampler`,
    `reranker`, `finisher` and `upscaler` are built on first use, the rest immediately.

    Args:
        recipe: holds the configs.
        registry: provides the components; its plugins' versions are stored with checkpoints.
        text_tokenizer, image_tokenizer, vocabulary, serializer, attention: built, in this order.
        own_decoder: built after them, or loaded when it is asked for.
        memory_split: the split of the data set used as memory; None: the training split. For generation
            it is the recipe's `generate.memory_split`.
        trust: resources outside its folder that the model may use; None: the recipe is the user's own.
    """

    recipe: Recipe
    registry: Registry
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizer
    vocabulary: Vocabulary
    serializer: Serializer
    attention: AttentionBackend
    own_decoder: Decoder | GenerationWeights
    memory_split: str | None = None
    trust: Trust | None = None

    @property
    def decoder(self) -> Decoder:
        """The decoder with the weights of training, loaded at the first access if the model was opened for generation
        alone (see `GenerationWeights`)."""
        return whole_of(self.own_decoder)

    @property
    def context_length(self) -> int:
        """The decoder's; loads no weights."""
        return self.own_decoder.context_length

    def for_engine(self) -> tuple[Decoder, int]:
        """The decoder that generates, and a number that changes with its weights."""
        own = self.own_decoder
        return own.for_engine() if isinstance(own, GenerationWeights) else (own, version_of(own))

    @cached_property
    def source(self) -> DocumentSource:
        """The data set, in the split that the recipe names."""
        return self._checked(source_of(self.recipe, self.registry))

    @cached_property
    def memory(self) -> DocumentSource:
        """The documents that can be retrieved: from the recipe's bank, the retriever's own
        memory, or the data set.

        Raises:
            CM3Error: the memory can't be opened, or its codes come from another image tokenizer.
        """
        config = self.recipe.retriever
        memory = None if config is None else memory_of(config)
        if memory is None:
            try:
                return self.memory_of_split(self.memory_split)
            except DataError as error:  # the model was distributed without its data
                step = f"{error.next_step}, retrieve from a bank (--bank) or nothing (--num-retrieved 0)"
                raise DataError(error.place, error.cause, step) from error
        if isinstance(memory, Memory):
            memory.check_tokenizer(self.image_tokenizer)
        return memory

    @cached_property
    def embedder(self) -> Embedder | None:
        """The embedder; None if the recipe has none."""
        config = self.recipe.embedder
        return None if config is None else built(config.build(), config, self.registry)

    @cached_property
    def retriever(self) -> Retriever | None:
        """The retriever over `memory`; None if the recipe has none."""
        config = self.recipe.retriever
        if config is None:
            return None
        return built(config.build(self.memory, self.embedder), config, self.registry)

    @cached_property
    def prompt_rewriter(self) -> PromptRewriter:
        """Decides the search query for a prompt; without this section, the prompt itself."""
        config: Any = self.recipe.section("prompt_rewriter")
        return AsItStands() if config is None else built(config.build(), config, self.registry)

    @cached_property
    def objective(self) -> MaskingObjective:
        """The masking objective."""
        config = section(self.recipe, "objective")
        objective: MaskingObjective = built(config.build(self.vocabulary), config, self.registry)
        return objective

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler."""
        config = section(self.recipe, "sampler")
        sampler: Sampler = built(config.build_for(self.parts), config, self.registry)
        return sampler

    @cached_property
    def parts(self) -> ModelParts:
        """The parts of the model that samplers receive."""
        return ModelParts(self.image_tokenizer, self.vocabulary, lambda: self.memory)

    @property
    def likelihood(self) -> Likelihood:
        """Computes the likelihood of given contents under the decoder, cutting texts of prompts as in
        training."""
        return Likelihood(
            self.own_decoder,
            self.serializer,
            self.vocabulary,
            max_text_tokens=self.recipe.data.max_text_tokens,
        )

    @cached_property
    def reranker(self) -> Reranker | None:
        """The reranker; None if the recipe has none."""
        config = self.recipe.reranker
        if config is None:
            return None
        reranker = config.build(embedder=self.embedder, likelihood=self.likelihood)
        return built(reranker, config, self.registry)

    @cached_property
    def upscaler(self) -> Upscaler | None:
        """The upscaler; None if the recipe has none."""
        config = self.recipe.upscaler
        return None if config is None else built(config.build(), config, self.registry)

    @cached_property
    def finisher(self) -> Finisher:
        """Decides how a generated picture is shown; without this section, as decoded."""
        config: Any = self.recipe.section("finisher")
        return AsDecoded() if config is None else built(config.build(), config, self.registry)

    def split(self, name: str) -> DocumentSource:
        """Another split of the data set, e.g. "comp". Raises the data set's error if it has
        no such split."""
        return self._checked(source_of(self.recipe, self.registry, split=name))

    def _checked(self, source: DocumentSource) -> DocumentSource:
        """The source, after checking that its documents fit the tokenizers."""
        source.check_tokenizers(self.text_tokenizer.fingerprint, self.image_tokenizer.fingerprint)
        return source

    def memory_of_split(self, name: str | None) -> DocumentSource:
        """The data set's documents for retrieval, from one split; None: the training split."""
        config = section(self.recipe, "dataset")
        memory = config.memory_config()
        if memory is not config:
            chosen = memory if name is None else replace(memory, split=name)
            source: DocumentSource = built(chosen.build(), chosen, self.registry)
            return source
        return self.source if name is None else self.split(name)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints stored in a checkpoint, of the parts that determine the meaning of ids."""
        layout = self.serializer.layout.fingerprint
        return {
            "text_tokenizer": self.text_tokenizer.fingerprint,
            "image_tokenizer": self.image_tokenizer.fingerprint,
            "vocabulary": self.vocabulary.fingerprint,
            **({"layout": layout} if layout else {}),
        }


def section(recipe: Recipe, kind: str) -> Any:
    """The config of `kind`; raises `RecipeError` if the recipe has no such section, `PluginError`
    if its component is not installed."""
    config = getattr(recipe, kind)
    if isinstance(config, MissingComponent):
        config.refuse()
    if config is None:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"has no section {kind!r}",
            f"add '{kind}: {{name: ...}}' to the recipe",
        )
    return config


def source_of(recipe: Recipe, registry: Registry, *, split: str | None = None) -> DocumentSource:
    """The recipe's data set; with a section `task`, the documents that the task makes from its records.

    `split`: overrides the recipe's. Raises the data set's error if it has no such split."""
    config = section(recipe, "dataset")
    if split is not None:
        config = replace(config, split=split)
    source: DocumentSource = built(config.build(), config, registry)
    if recipe.task is None:
        return source
    task = section(recipe, "task")
    title = title_of(recipe.component_names["task"], task)
    return TaskSource(source, built(task.build(), task, registry), title)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Components stored in a checkpoint.

    Args:
        text_tokenizer: its folder. None: use the recipe's file, or train one on the data set's texts.
        image_tokenizer: its folder. None, or missing: as the recipe specifies.
        max_spans: `trained_spans`, in case the objective is not installed.
    """

    text_tokenizer: Path | None = None
    image_tokenizer: Path | None = None
    max_spans: int | None = None


def build(
    recipe: Recipe,
    registry: Registry,
    *,
    stage: str,
    stored: Stored | None = None,
    device: torch.device | str = "cpu",
    decoder_device: torch.device | None = None,
) -> Components:
    """Build everything that `stage` needs, in order: data set, tokenizers, vocabulary, serializer, attention, decoder.
    The decoder is initialised with the recipe's `train.seed`; torch's global generator is unchanged.

    Args:
        recipe: composed and checked.
        registry: the plugins that it was composed with.
        stage: "train" (also builds data set and objective) or "generate".
        stored: components stored in a checkpoint; None: none.
        device: of the decoder and the image tokenizer.
        decoder_device: device for building the decoder, if different ("meta": without weights).

    Raises:
        RecipeError: a section is missing, `vocabulary.num_text` is too small for the tokenizer, or
            the weights exceed the memory.
    """
    stored = stored or Stored()
    _check_sections(recipe, stage)
    source = _usable_source(recipe, registry) if stage == "train" else None
    text_tokenizer = _text_tokenizer(recipe, stored.text_tokenizer, source, registry)
    config = section(recipe, "image_tokenizer")
    image_tokenizer = image_tokenizer_of(config, stored.image_tokenizer, registry)
    layout = layout_of(recipe, text_tokenizer, image_tokenizer, registry)
    vocabulary, grid = layout.vocabulary, image_tokenizer.grid
    image_tokenizer.move_to(chosen := torch.device(device))
    built_on = chosen if decoder_device is None else decoder_device
    check_weights_fit(section(recipe, "decoder"), vocabulary, grid, built_on)
    form = image_tokenizer.form.for_axes(section(recipe, "decoder").position_axes())
    serializer = _serializer(recipe, registry, layout, text_tokenizer, form, stored.max_spans)
    config = section(recipe, "attention")
    attention: AttentionBackend = built(config.build(), config, registry)
    decoder = _decoder(recipe, registry, vocabulary, attention, grid, (chosen, built_on))
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
        components.source = components._checked(source)
    return components


def _decoder(
    recipe: Recipe,
    registry: Registry,
    vocabulary: Vocabulary,
    attention: AttentionBackend,
    grid: tuple[int, int],
    devices: tuple[torch.device, torch.device],
) -> Decoder:
    """`devices`: of the model, and the one to build on."""
    config, (device, built_on) = section(recipe, "decoder"), devices
    with (
        fitting_memory("recipe section decoder"),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.device(built_on),
    ):
        torch.manual_seed(recipe.train.seed)
        decoder: Decoder = built(config.build(vocabulary, attention, grid), config, registry)
    return decoder


def another_decoder(components: Components, device: torch.device) -> Decoder:
    """A decoder like that of the components, initialised anew."""
    parts = components
    return _decoder(
        parts.recipe,
        parts.registry,
        parts.vocabulary,
        parts.attention,
        parts.image_tokenizer.grid,
        (device, device),
    )


def _check_sections(recipe: Recipe, stage: str) -> None:
    if missing := [kind for kind in NEEDED[stage] if getattr(recipe, kind) is None]:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"has no section {', '.join(map(repr, missing))}, needed to {stage}",
            f"add '{missing[0]}: {{name: ...}}' to the recipe",
        )


def _serializer(
    recipe: Recipe,
    registry: Registry,
    layout: Layout,
    text_tokenizer: TextTokenizer,
    form: PictureForm,
    max_spans: int | None,
) -> Serializer:
    """`max_spans`: as stored in a checkpoint, in case the objective is not installed."""
    objective = available(recipe.objective)
    if objective is not None:
        max_spans = trained_spans(recipe, layout.vocabulary, registry)
    return Serializer(
        layout.vocabulary,
        text_tokenizer,
        form,
        None if objective is None else objective.prompt_tokens,
        max_spans=max_spans,
        layout=layout,
    )


def _usable_source(recipe: Recipe, registry: Registry) -> DocumentSource:
    """The training data set; raises `RecipeError` if it has no usable document."""
    source = source_of(recipe, registry)
    if len(source) == 0:
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
    return source


def trained_spans(
    recipe: Recipe, vocabulary: Vocabulary, registry: Registry | None = None
) -> int | None:
    """Maximum number of masked spans per sequence in training with a recipe. None: the recipe doesn't
    say how the decoder is trained, or its objective is not installed. `registry`: see
    `built`."""
    config = available(recipe.objective)
    if config is None:
        return None
    objective = built(config.build(vocabulary), config, registry)
    return objective.max_added_tokens // TOKENS_PER_SPAN


def split_or_reason(components: Components, name: str) -> DocumentSource | str:
    """A split for validation, or the reason it is unavailable: training can continue without
    it."""
    try:
        source = components.split(name)
    except CM3Error as error:
        return error.cause
    return source if len(source) else "it has no documents"


def _text_tokenizer(
    recipe: Recipe, folder: Path | None, source: DocumentSource | None, registry: Registry
) -> TextTokenizer:
    """The text tokenizer: the one saved in a folder, the data set's own, or built by the config from the data set's
    texts."""
    config: TextTokenizerConfig = section(recipe, "text_tokenizer")
    if folder is None and source is not None:
        folder = source.text_tokenizer_folder(recipe.component_names["text_tokenizer"], config)
    if folder is None:
        return built(config.build(None if source is None else source.texts()), config, registry)
    with _readable_files("text_tokenizer", folder):
        return built(config.load(folder), config, registry)


def image_tokenizer_of(
    config: ImageTokenizerConfig, folder: Path | None, registry: Registry | None = None
) -> ImageTokenizer:
    """The image tokenizer saved in a folder, or built from the config if there is no
    such folder; `registry`: see `built`."""
    with fitting_memory("recipe section image_tokenizer"):
        if folder is None or not folder.is_dir():
            return built(config.build(), config, registry)
        with _readable_files("image_tokenizer", folder):
            return built(config.load(folder), config, registry)


@contextmanager
def _readable_files(kind: str, folder: Path) -> Iterator[None]:
    """Turn errors of a component's `load` into a `CM3Error`: files of a checkpoint or a bank may be missing or
    damaged, which component authors seldom handle."""
    try:
        yield
    except CM3Error:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TokenizerError(
            str(folder),
            f"can't be read as the {kind} ({type(error).__name__}: {error})",
            "copy the whole folder again from its source",
        ) from error


def layout_of(
    recipe: Recipe,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer | ImageTokenizerConfig,
    registry: Registry | None = None,
) -> Layout:
    """The recipe's layout with its vocabulary; the default layout if the recipe has no such section.

    `registry`: see `layout_config`. Raises `RecipeError` if the tokenizers don't suit it.
    """
    config = layout_config(recipe, registry)
    sizes, objective = recipe.vocabulary, available(recipe.objective)
    given = VocabularySizes(
        text_tokenizer.vocab_size,
        image_tokenizer.codebook_size,
        sizes.num_text,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
        () if objective is None else tuple(objective.control_tokens()),
    )
    parts = VocabularyParts(text_tokenizer, image_tokenizer.codebook_size, given)
    return built(config.build(parts, image_tokenizer.grid), config, registry)
