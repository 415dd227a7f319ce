"""A composed recipe: plain dataclasses, canonical YAML, hash, checks, the diff of two, and the files that preserve its
meaning whatever is installed later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from omegaconf import OmegaConf

from cm3core import interfaces as base
from cm3core.arguments import checked
from cm3core.config.schema import all_parts, check_config, defaults, needs_of, to_plain
from cm3core.errors import CM3Error, PluginError, RecipeError, TokenizerError
from cm3core.interfaces.component import ComponentConfig, check_exists, choose, chosen_name
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.kinds import KINDS
from cm3core.plugins.registry import (
    COMPONENTS,
    Provider,
    Registry,
    dump_providers,
    provider_of,
)
from cm3core.recipe.abilities import check_required
from cm3core.recipe.layers import STORED
from cm3core.recipe.sections import (
    FIXED_SECTIONS,
    UNHASHED,
    UNSHOWN,
    DataSection,
    GenerateSection,
    TrainSection,
    TuneSection,
    VocabularySection,
)
from cm3core.recipe.values import Choice

# A component of a stored recipe that is not installed: an error only when it is used.
#
# A run's recipe names everything that it was trained with. Generation needs neither the objective nor
# the data; code that does use them gets an error that names their provider.


T = TypeVar("T", bound=ComponentConfig)


class MissingComponent(ComponentConfig):
    """A placeholder for the config of an unavailable component.

    It keeps the section's `name` and `values`, so that the recipe is shown, compared and hashed as
    it was stored. Any other use raises the `PluginError` from looking up the name, or the error
    set by `explain`.
    """

    def __init__(self, name: str, values: dict[str, Any], error: CM3Error) -> None:
        self.name, self.values = name, values
        self._error = error

    @classmethod
    def of(cls, choice: Choice, error: PluginError) -> MissingComponent:
        """Return a placeholder for a section whose component, or an inner one, is unavailable."""
        return cls(str(choice.name), choice.keys, error)

    def explain(self, error: CM3Error) -> None:
        """Raise this error from now on, which gives a better reason."""
        self._error = error

    def refuse(self) -> NoReturn:
        """Raise the error."""
        # a new one each time, because raising accumulates tracebacks
        raise type(self._error)(self._error.place, self._error.cause, self._error.next_step)

    def check(self) -> None:
        """Raise the error, because the allowed values are unknown."""
        self.refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # expected by copy, pickle and inspect
        self.refuse()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissingComponent) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]  # as of every config: its values can change


def available(config: T | None) -> T | None:
    """Return a section's config, None if its component is unavailable; for callers that can do without it."""
    return None if isinstance(config, MissingComponent) else config


# The sections of a recipe that hold components: one field per kind.


if TYPE_CHECKING:

    @dataclass(kw_only=True)
    class KindSections:
        """The types of a recipe's components, for type checkers.

        A kind without a line here works too; only the type of `recipe.KIND` is then unknown."""

        text_tokenizer: base.TextTokenizerConfig | None = None
        image_tokenizer: base.ImageTokenizerConfig | None = None
        layout: base.LayoutConfig | None = None
        embedder: base.EmbedderConfig | None = None
        retriever: base.RetrieverConfig | None = None
        objective: base.ObjectiveConfig | None = None
        decoder: base.DecoderConfig | None = None
        attention: base.AttentionConfig | None = None
        sampler: base.SamplerConfig | None = None
        reranker: base.RerankerConfig | None = None
        upscaler: base.UpscalerConfig | None = None
        dataset: base.DocumentSourceConfig | None = None
        extractor: base.ExtractorConfig | None = None
        metric: base.MetricConfig | None = None
        task: base.TaskConfig | None = None
        condition: base.ConditionConfig | None = None
        tracker: base.TrackerConfig | None = None

else:
    KindSections = make_dataclass(
        "KindSections",
        [
            (kind, f"base.{entry.config.__name__} | None", field(default=None))
            for kind, entry in KINDS.items()
        ],
        kw_only=True,
        namespace={"__module__": __name__, "__doc__": "A field for each kind in `KINDS`."},
    )


#: A key that only one of two compared recipes has.
ABSENT = "(absent)"
#: Kinds used only by evaluations, which get them from elsewhere than a run's recipe.
MEASURING = ("metric", "extractor")


@dataclass(kw_only=True)
class Recipe(KindSections):
    """Everything that defines a run.

    Sections of kinds hold the component's config, None if the recipe has none.

    Args:
        name: the file's name, or its top-level key `name`; not part of the hash. Plain, because
            folders are named after it.
        vocabulary, train, tune, data, generate: see `cm3core.recipe.sections`.
        component_names: kind -> the component's name as the recipe writes it.
        origins: `section.key` -> the layer that its value comes from ("default" if no layer sets it).
        brought: kind -> config, for kinds defined by plugins; `recipe.KIND` is the same.
    """

    name: str
    vocabulary: VocabularySection = field(default_factory=VocabularySection)
    train: TrainSection = field(default_factory=TrainSection)
    tune: TuneSection = field(default_factory=TuneSection)
    data: DataSection = field(default_factory=DataSection)
    generate: GenerateSection = field(default_factory=GenerateSection)
    component_names: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    brought: dict[str, base.ComponentConfig] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """The section of a kind defined by a plugin; other kinds have fields."""
        brought = vars(self).get("brought", {})
        if name in brought:
            return brought[name]
        raise AttributeError(f"the recipe has no section {name!r}")

    def section(self, kind: str) -> base.ComponentConfig | None:
        """A component's section, for any kind; None if the recipe has none."""
        config: base.ComponentConfig | None = (
            getattr(self, kind) if kind in KINDS else self.brought.get(kind)
        )
        return config

    @property
    def components(self) -> dict[str, tuple[str, base.ComponentConfig]]:
        """Kind -> (name, config) of the recipe's sections, in the order of `KINDS`, followed by kinds
        defined by plugins."""
        own = {kind: getattr(self, kind) for kind in KINDS} | self.brought
        return {
            kind: (self.component_names[kind], config)
            for kind, config in own.items()
            if config is not None
        }

    @property
    def validation_splits(self) -> list[str]:
        """The splits to validate on: `train.validation_splits`, or the data set's own "valid".

        The latter is used if the data set has none of the former and is not trained on as a whole.
        Splits that it lacks are included, so that they can be reported."""
        named, data = self.train.validation_splits, self.dataset
        known = () if data is None else data.splits
        if data is None or "valid" not in known or any(split in known for split in named):
            return list(named)
        return [*named, "valid"] if data.split not in ("valid", "all") else list(named)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return section -> key -> value, complete and resolved, as YAML values.

        Sections and keys are in their fixed order."""
        sections = {
            kind: {
                "name": name,
                **(config.values if isinstance(config, MissingComponent) else to_plain(config)),
            }
            for kind, (name, config) in self.components.items()
        }
        return sections | {name: _shown(name, getattr(self, name)) for name in FIXED_SECTIONS}

    @property
    def section_parts(self) -> list[tuple[str, base.ComponentConfig]]:
        """(key, config) of the components inside the fixed sections, e.g. "train.trackers.0"."""
        return [
            (f"{name}.{path}", part)
            for name in FIXED_SECTIONS
            for path, part in all_parts(getattr(self, name))
        ]

    def to_yaml(self) -> str:
        """Return canonical YAML: every key, resolved, in a fixed order.

        `recipe_from_yaml` is its inverse."""
        return _dump({"name": self.name, **self.to_dict()})

    @property
    def hash(self) -> str:
        """12 hexadecimal digits shared by equal settings, and only by them.

        The hash covers the canonical YAML without the recipe's name and without `UNHASHED` keys."""
        values = self.to_dict()
        for section, key in UNHASHED:
            values[section].pop(key, None)
        return hashlib.sha256(_dump(values).encode()).hexdigest()[:12]

    def flat(self) -> dict[str, Any]:
        """Return `section.key` -> value; nested dataclasses are flattened, lists are not."""
        return _flatten(self.to_dict(), "")

    def check(self, *, ready: bool = False, carried: Collection[str] = ()) -> None:
        """Raise `RecipeError` for values that are out of range or can't be combined.

        Light: nothing is built, no file is read. Calls `config.check()` of every component and inner
        component, then checks the fixed sections, then conditions across sections.

        Args:
            ready: also refuse what can't be built now (`config.check_ready()`): weights and paths that are null, files
                that don't exist. Without it, a recipe of a model that came from another machine is valid, too.
            carried: kinds whose components come from a checkpoint, so that their files need not be here.
        """
        for _, config in self.components.values():
            check_config(config)
        for name in FIXED_SECTIONS:
            getattr(self, name).check()
        for place, part in self.section_parts:
            check_config(part, place)
        self._check_needs()
        if ready:
            self.check_start()
            self._check_ready(carried)
        check_required(self.components)
        self._check_read()
        self._check_vocabulary()
        self._check_layout()
        self._check_task()
        self._check_form()
        self._check_pictures()
        self._check_context()
        self._check_heads()
        self._check_candidates()
        self._check_memory()

    def _check_ready(self, carried: Collection[str]) -> None:
        for kind, (_, config) in self.components.items():
            if kind not in carried:
                check_config(config, kind, lambda part: part.check_ready())
        for place, part in self.section_parts:
            check_config(part, place, lambda part: part.check_ready())
        if self.train.start_from is not None:
            check_exists("train.start_from", self.train.start_from, "model")

    def _check_memory(self) -> None:
        split = self.generate.memory_split
        known = self.dataset.memory_config().splits if self.dataset else ()
        if split is not None and split not in known:
            raise RecipeError(
                "generate.memory_split",
                f"the data set has no split {split!r}",
                f"use one of {', '.join(known)}" if known else "leave it out, or name a data set",
            )

    def _check_needs(self) -> None:
        for kind, (name, config) in self.components.items():
            if missing := [other for other in needs_of(config) if self.section(other) is None]:
                raise RecipeError(
                    kind,
                    f"{name!r} needs the section {missing[0]!r}, but the recipe has none",
                    f"add {missing[0]}=NAME (or '{missing[0]}: {{name: ...}}' in the recipe), or "
                    f"change {kind}",
                )

    def _check_read(self) -> None:
        """Check that every section is used, so that users don't expect an unused metric to be computed."""
        needed = {other for _, config in self.components.values() for other in needs_of(config)}
        for kind in MEASURING:
            if getattr(self, kind) is not None and kind not in needed:
                raise RecipeError(
                    kind,
                    f"{self.component_names[kind]!r} is for evaluations, and neither training nor generation uses it",
                    "leave it out; pass it to 'cm3 eval score' or 'cm3 tokenizer eval --score', or write it into a "
                    "protocol of 'cm3 eval run'",
                )
        for kind, (name, _) in self.components.items():
            if kind in KINDS and (key := KINDS[kind].key):
                raise RecipeError(kind, "is not read as a section", f"write {key}=[{name}]")

    def _check_heads(self) -> None:
        attention, decoder = available(self.attention), available(self.decoder)
        if attention is None or decoder is None:
            return
        largest, dim = attention.largest_head_dim, decoder.attention_head_dim()
        if largest is not None and dim is not None and dim > largest:
            raise RecipeError(
                "attention",
                f"{self.component_names['attention']!r} supports heads of at most {largest} dimensions, but "
                f"the decoder's have {dim}",
                "use more heads, or another attention backend (cm3 kinds attention)",
            )

    def _check_task(self) -> None:
        """Check that records have the fields that the task asks for, as far as they are known."""
        task, data = available(self.task), available(self.dataset)
        if task is None or data is None or (fields := data.record_fields()) is None:
            return
        lacks = [field for field in task.build().fields if field not in fields]
        if lacks:
            name, source = self.component_names["task"], self.component_names["dataset"]
            raise RecipeError(
                "task",
                f"{name!r} needs the field {lacks[0]!r}, and records of dataset {source!r} have "
                f"{', '.join(fields)}",
                "choose a task with these fields (cm3 task list), or a data set that has the others, such as table with "
                "dataset.columns",
            )

    def _check_form(self) -> None:
        """Check that decoder and layout take such pictures: as many codes together as a place has, or one, with the
        positions that the decoder takes, and a number of them that both can write."""
        decoder, tokenizer = available(self.decoder), available(self.image_tokenizer)
        if decoder is None or tokenizer is None:
            return
        number, axes, names = decoder.codes_together, decoder.position_axes(), self.component_names
        if number == 1 and not axes:
            return
        form = tokenizer.form
        if number not in (1, form.depth):
            raise RecipeError(
                "decoder",
                f"{names['decoder']!r} predicts {number} codes of a place together, and pictures "
                f"of image_tokenizer {names['image_tokenizer']!r} are {form.name}",
                "give the decoder that number, or choose one that predicts codes one after the other "
                "(cm3 kinds decoder)",
            )
        try:
            form.for_axes(axes)
        except TokenizerError as error:
            raise RecipeError("decoder", error.cause, error.next_step) from None

    def _check_pictures(self) -> None:
        """Check that decoder, layout and sampler can write the image tokenizer's pictures."""
        tokenizer = available(self.image_tokenizer)
        if tokenizer is None:
            return
        for part in (available(self.layout), available(self.decoder), available(self.sampler)):
            if part is not None:
                part.check_pictures(tokenizer.grid, tokenizer.codebook_size)

    def _check_vocabulary(self) -> None:
        if self.vocabulary.num_text is None and self.text_tokenizer is None:
            raise RecipeError(
                "vocabulary.num_text",
                "is null, but there is no text tokenizer to take it from",
                "add a section text_tokenizer, or give the number",
            )

    def _check_layout(self) -> None:
        """Check that the layout has what the objective and the form of pictures need."""
        layout, objective = available(self.layout), available(self.objective)
        tokenizer = available(self.image_tokenizer)
        if layout is not None and tokenizer is not None and not layout.writes_sequences:
            form = tokenizer.form
            if form.is_sequence:
                raise RecipeError(
                    "layout",
                    f"{self.component_names['layout']!r} writes pictures of one length, and those of image_tokenizer "
                    f"{self.component_names['image_tokenizer']!r} are {form.name}",
                    "leave layout out, which takes the default one, or choose an image tokenizer whose pictures have "
                    "a grid (cm3 describe image_tokenizer)",
                )
        if layout is None or objective is None or layout.has_sentinels:
            return
        if objective.masks_spans or objective.control_tokens():
            own, name = self.component_names["objective"], self.component_names["layout"]
            what = "masks spans" if objective.masks_spans else "has its own control tokens"
            lacks = "sentinels" if objective.masks_spans else "ids for them"
            raise RecipeError(
                "objective",
                f"{own!r} {what}, but the layout {name!r} has no {lacks}",
                "choose an objective that predicts the next token only (objective=causal)",
            )

    def check_start(self) -> None:
        """Raise `RecipeError` if a part of a model is to be trained, but no model is named."""
        if self.train.start_from is None and self.tune.method != "full":
            raise RecipeError(
                "tune.method",
                f"is {self.tune.method!r}, but there is no model to tune",
                "use cm3 tune MODEL RECIPE, or train.start_from=MODEL",
            )

    def _check_candidates(self) -> None:
        """Check that there is a reranker if there are several candidates."""
        if self.generate.num_candidates > 1 and self.reranker is None:
            raise RecipeError(
                "generate.num_candidates",
                f"is {self.generate.num_candidates}, but there is no reranker to choose the best",
                "add reranker=clip (with an embedder) or reranker=likelihood, or use 1",
            )

    def _check_context(self) -> None:
        """Check that the retrieved documents and the query, one picture each, fit the context.

        Text is not counted."""
        if self.decoder is None or self.image_tokenizer is None:
            return
        rows, columns = self.image_tokenizer.grid
        num_documents = 1 + (self.retriever.num_retrieved if self.retriever is not None else 0)
        layout = available(self.layout)
        # <break> codes <break>, or the layout's tokens; and one token before everything
        one = rows * columns + 2 if layout is None else layout.picture_length((rows, columns))
        least = num_documents * one + 1
        if least > self.decoder.context_length:
            fitting = (self.decoder.context_length - 1) // one - 1
            fewer = f", or retriever.num_retrieved={fitting}" if fitting >= 0 else ""
            # a whole number of 32, which suits the memory of GPUs
            whole = -(-(least + num_documents * self.data.max_text_tokens) // 32) * 32
            form = self.image_tokenizer.form
            pictures = "one picture" if num_documents == 1 else f"{num_documents} pictures"
            pictures += f" of {rows} x {columns} codes" if form.is_plain else f", each {form.name}"
            raise RecipeError(
                "decoder.context_length",
                f"is {self.decoder.context_length}, too short for {pictures} ({least} tokens "
                "without text)",
                f"set decoder.context_length={whole}, which has room for the texts, too{fewer}",
            )


@checked(RecipeError)
def diff(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (key, value in `a`, value in `b`) for every key that differs, in the recipes' order.

    A value is `ABSENT` if that recipe has no such key."""
    left, right = a.flat(), b.flat()
    keys = [*left, *(key for key in right if key not in left)]
    return [
        (key, left.get(key, ABSENT), right.get(key, ABSENT))
        for key in keys
        if key not in left
        or key not in right
        or left[key] != right[key]
        or type(left[key]) is not type(right[key])
    ]


def _flatten(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(section: str, config: Any) -> dict[str, Any]:
    """Return a fixed section's keys and values; `UNSHOWN` keys only where they are not the default."""
    usual = defaults(type(config))
    return {
        key: value
        for key, value in to_plain(config).items()
        if (section, key) not in UNSHOWN or value != to_plain(usual[key])
    }


def _dump(values: dict[str, Any]) -> str:
    """Return YAML by OmegaConf, which quotes every text that its loader would read as a number."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(values)), resolve=False)


def _escape(value: Any) -> Any:
    r"""Write `${` in resolved texts as `\${`, so that reading them back resolves nothing.

    Backslashes just before it are doubled: OmegaConf halves those there, and only there."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def in_full(recipe: Recipe, registry: Registry) -> Recipe:
    """Return the recipe with `plugin/name` wherever several plugins provide a name.

    Its YAML then has the same meaning in a file of its own.
    """
    recipe = deepcopy(recipe)
    names = dict(recipe.component_names)
    for kind, (name, config) in recipe.components.items():
        names[kind] = _full_name(registry, kind, name, config)
        for _, part in all_parts(config):
            choose(part, _full_name(registry, part.kind, chosen_name(part), part))
    for _, part in recipe.section_parts:
        choose(part, _full_name(registry, part.kind, chosen_name(part), part))
    return replace(recipe, component_names=names)


def _full_name(registry: Registry, kind: str, name: str, config: ComponentConfig) -> str:
    provider = provider_of(registry, kind, name, config)
    several = provider is not None and len(registry.owners(kind, name)) > 1
    return f"{provider.plugin}/{name}" if provider is not None and several else name


def files_of(recipe: Recipe, registry: Registry) -> dict[str, str]:
    """Return file name -> text: the resolved recipe, and the providers of its components.

    Both belong in one folder; `compose` reads them again.
    """
    providers = providers_of(recipe, registry)
    return {COMPONENTS: dump_providers(providers), STORED: recipe.to_yaml()}


def kinds_of(recipe: Recipe) -> set[str]:
    """The kinds of a recipe's components and inner components."""
    parts = [part for _, config in recipe.components.values() for _, part in all_parts(config)]
    return {*recipe.components, *(part.kind for part in parts)}


def providers_of(recipe: Recipe, registry: Registry) -> dict[str, Provider]:
    """Return kind -> the provider of its component; for inner components, by their key."""
    components = [(kind, kind, name, config) for kind, (name, config) in recipe.components.items()]
    for kind, (_, config) in recipe.components.items():
        components += [
            (f"{kind}.{path}", part.kind, chosen_name(part), part)
            for path, part in all_parts(config)
        ]
    components += [(key, part.kind, chosen_name(part), part) for key, part in recipe.section_parts]
    return {
        key: provider
        for key, kind, name, config in components
        if (provider := provider_of(registry, kind, name, config)) is not None
    }


# The layout of a recipe, the default layout, and the corresponding vocabulary.


def layout_config(recipe: Recipe, registry: Registry | None = None) -> base.LayoutConfig:
    """The recipe's layout, or the default one.

    Args:
        recipe: composed.
        registry: the installed plugins. None: discover them.

    Raises:
        PluginError: the recipe's layout is not installed, or there is not exactly one default layout.
    """
    if isinstance(recipe.layout, MissingComponent):
        recipe.layout.refuse()
    return default_layout(registry) if recipe.layout is None else recipe.layout


def default_layout(registry: Registry | None = None) -> base.LayoutConfig:
    """The layout for recipes that name none: the one whose config sets `is_default`.

    Raises:
        PluginError: no plugin provides one, or several do.
    """
    registry = load_registry() if registry is None else registry
    found = {
        f"{owner}/{name}": config_class
        for name in registry.names("layout")
        for owner in registry.owners("layout", name)
        if issubclass(
            config_class := registry.config_class("layout", f"{owner}/{name}"), base.LayoutConfig
        )
        and config_class.is_default
    }
    if len(found) != 1:
        what = "no plugin has" if not found else f"{' and '.join(found)} both are"
        raise PluginError(
            "recipe section 'layout'",
            f"is not there, and {what} the layout of recipes without it",
            registry.with_reasons("name a layout, or see 'cm3 plugin list'", "layout"),
        )
    return next(iter(found.values()))()
