"""The recipe's fixed sections, which hold no components. Their docstrings document the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_numbers, check_value
from cm3core.interfaces.tracker import TrackerConfig

_INT64 = 2**63 - 1
#: Longest window of parallel decoding.
MOST_AHEAD = 256
#: Smallest and largest values of the sections' numbers, see `ComponentConfig.ranges`.
VOCABULARY_RANGES: Mapping[str, tuple[float, float]] = {
    "num_text": (5, 2**24),
    "num_sentinels": (1, 2**20),
    "num_reserved": (0, 2**20),
    "multiple_of": (1, 2**20),
}
#: `clip_norm` and `checkpoint_every_minutes` may be infinite: never clipped, never due.
TRAIN_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, _INT64),
    "steps": (1, _INT64),
    "minutes": (0, 10_000_000),
    "batch_rows": (1, 2**20),
    "accumulate": (1, 2**20),
    "learning_rate": (0, 1e6),
    "muon_learning_rate": (0, 1e6),
    "eps": (0, 1e6),
    "weight_decay": (0, 1e6),
    "warmup_steps": (0, _INT64),
    "clip_norm": (0, math.inf),
    "z_loss": (0, 1e6),
    "checkpoint_every_minutes": (0, math.inf),
    "checkpoint_every_steps": (1, _INT64),
    "keep_checkpoints": (1, _INT64),
    "log_every_steps": (1, _INT64),
    "validate_every_steps": (1, _INT64),
    "validate_every_minutes": (0, 10_000_000),
    "validation_documents": (1, _INT64),
    "sample_every_steps": (1, _INT64),
    "sample_every_minutes": (0, 10_000_000),
    "patience": (0, _INT64),
    "num_threads": (1, 4096),
}
#: A rank is also limited by the smaller side of each matrix, which only the decoder knows.
TUNE_RANGES: Mapping[str, tuple[float, float]] = {
    "blocks": (0, 2**20),
    "rank": (1, 4096),
    "alpha": (1e-3, 1e6),
    "dropout": (0, 1),
}
#: Methods of the section `tune` that add adapters and leave the model's own weights unchanged.
ADAPTERS = ("lora", "dora")
DATA_RANGES: Mapping[str, tuple[float, float]] = {
    "max_text_tokens": (1, 2**24),
    "num_streams": (1, 2**20),
}
GENERATE_RANGES: Mapping[str, tuple[float, float]] = {
    "num_images": (1, 2**20),
    "num_candidates": (1, 2**20),
    "max_text_tokens": (1, 2**24),
}


@dataclass(kw_only=True)
class VocabularySection:
    """The table of token ids, see `cm3core.vocab.Vocabulary`.

    The image tokenizer determines the size of the image range.

    Args:
        num_text: size of the text range, including 4 control tokens (paper: 56,320). null: the text
            tokenizer's size + 4.
        num_sentinels: mask tokens; the maximum number of spans masked in a sequence (metaseq: 512).
        num_reserved: unused ids between image codes and special tokens (paper: 1,024).
        multiple_of: the embedding table's rows are padded to a multiple of this (metaseq: 8).
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = VOCABULARY_RANGES
    num_text: int | None = None
    num_sentinels: int = 512
    num_reserved: int = 0
    multiple_of: int = 8

    def check(self) -> None:
        """Raise `RecipeError` for a size out of range."""
        check_numbers("vocabulary", self, self.ranges)


@dataclass(kw_only=True)
class TrainSection:
    """How the decoder is trained.

    Args:
        seed: determines the initial weights, the order of documents and all random draws of the
            objective.
        steps: optimiser steps; give exactly one of `steps` and `minutes`.
        minutes: wall-clock length; the schedule follows the clock, without interruptions.
        batch_rows: packed rows of `decoder.context_length` tokens per micro-batch.
        accumulate: micro-batches per optimiser step. Several processes divide the batch_rows x
            accumulate rows of a step among them.
        optimizer: "adamw", or "muon": Muon for the layers' matrices, AdamW for the rest.
        learning_rate: peak learning rate of AdamW.
        muon_learning_rate: peak learning rate of Muon's matrices.
        betas: AdamW's two betas.
        eps: AdamW's epsilon.
        weight_decay: decoupled; on matrices only.
        warmup_steps: linear from 0 to the peak; counted in steps even with `minutes`.
        schedule: after warm-up: "cosine", "polynomial" (degree 1: linear), "trapezoidal" (the peak,
            then a straight line down in the last `decay_fraction`) or "constant".
        final_learning_rate_fraction: fraction of the peak at the end of the schedule.
        decay_fraction: "trapezoidal": fraction of the length during which the rate falls. A checkpoint
            from before the fall can be trained for longer, as if this had been planned from the start.
        clip_norm: maximum norm of the whole gradient; 0 is off.
        precision: "fp32", "bf16" (autocast; weights stay fp32), or "auto": bf16 if the machine
            supports it.
        z_loss: weight of (log Z)^2, which keeps logits from growing (Chameleon: 1e-5); 0 is off.
        start_from: start from the weights of a trained model instead of random ones (fine-tuning):
            a run's folder, a checkpoint, an exported model, or "PLUGIN:NAME". Its tokenizers are
            used; the section `decoder` must be the model's. `cm3 tune` sets it.
        start_from_codebook: initialise the image codes' embeddings from the tokenizer's codebook.
        checkpoint_every_minutes: maximum minutes between checkpoints; the last one is saved at the
            end.
        checkpoint_every_steps: also save a checkpoint every this many steps; null is off.
        keep_checkpoints: number of complete checkpoints to keep.
        save_in_background: continue training while a checkpoint is written. It is copied first, so the
            machine's memory must hold weights and optimiser state once more.
        log_every_steps: steps between two lines of metrics.
        validate_every_steps: steps between two validations.
        validate_every_minutes: also at the start and this often, in at most a fifth of the time; null is off.
        validation_splits: the data set's splits to validate on. If it has none of them, its split
            "valid" is used, provided that it exists and is not trained on.
        validation_documents: maximum number of documents of each split.
        sample_every_steps: steps between two grids of sample pictures; null is off.
        sample_every_minutes: also at the start, at the end, and as often as `validate_every_minutes`; null is off.
        patience: stop after this many validations without a lower loss, with the checkpoint of the lowest; 0 is off.
        compile: torch.compile the decoder's blocks separately: equal blocks are compiled once.
        num_threads: torch's CPU threads; null: as many as the machine has.
        licences: the licences (SPDX names) allowed for documents; documents with another or an
            unknown licence ("unknown") are refused. Empty: all.
        trackers: receive metrics, sample pictures and the run's other events, in addition to `metrics.jsonl`: names,
            or mappings with `name` and keys (`cm3 describe tracker`). null: TensorBoard; []: none. Not part of
            the recipe's hash.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = TRAIN_RANGES
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    batch_rows: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 100
    schedule: Literal["cosine", "polynomial", "trapezoidal", "constant"] = "cosine"
    final_learning_rate_fraction: float = 0.1
    decay_fraction: float = 0.2
    clip_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    z_loss: float = 0.0
    start_from: str | None = None
    start_from_codebook: bool = True
    checkpoint_every_minutes: float = 5.0
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 2
    save_in_background: bool = False
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validate_every_minutes: float | None = None
    validation_splits: list[str] = field(default_factory=list)
    validation_documents: int = 128
    sample_every_steps: int | None = None
    sample_every_minutes: float | None = None
    patience: int = 0
    compile: bool = False
    num_threads: int | None = None
    licences: list[str] = field(default_factory=list)
    trackers: list[TrackerConfig] | None = None

    def check(self) -> None:
        """Raise `RecipeError` for values that are out of range or can't be combined."""
        check_numbers("train", self, self.ranges)
        if (self.steps is None) == (self.minutes is None):
            given = (
                "neither is given"
                if self.steps is None
                else f"both are given ({self.steps} and {self.minutes:g})"
            )
            raise RecipeError(
                "train.steps, train.minutes",
                f"exactly one decides the length, {given}",
                "give one, and set the other to null",
            )
        # 0 is in the range of these, but means nothing
        for key in ("minutes", "validate_every_minutes", "sample_every_minutes"):
            value = getattr(self, key)
            check_value(
                f"train.{key}",
                value,
                value is None or value > 0,
                must_be="null or greater than 0",
                instead="null",
            )
        for key in ("learning_rate", "muon_learning_rate", "eps", "checkpoint_every_minutes"):
            value = getattr(self, key)
            usual = f"{getattr(type(self), key):g}"
            check_value(f"train.{key}", value, value > 0, must_be="greater than 0", instead=usual)
        for key in ("final_learning_rate_fraction", "decay_fraction"):
            fraction = getattr(self, key)
            check_value(
                f"train.{key}",
                fraction,
                0 <= fraction <= 1,
                must_be="from 0 to 1",
                instead="1" if fraction > 1 else "0",
            )
        check_value(
            "train.betas",
            self.betas,
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            must_be="two numbers from 0 to 1, 1 not included",
            instead="[0.9,0.95]",
        )


@dataclass(kw_only=True)
class TuneSection:
    """Which parameters of the model that the run starts from are trained (docs/tuning.md).

    Args:
        method: "full": all. "layers": those of `parameters`. "head": the output projection's rows of
            image codes (Anole, arXiv:2407.06135); if it is tied to the token embedding, these rows
            of the embedding, too. "embeddings": the tables of token embeddings, including the head.
            "lora": only adapters (arXiv:2106.09685). "dora": adapters that also learn each
            output's magnitude (arXiv:2402.09353).
        parameters: names of parameters or of modules that contain them, `*` for any text: `layers.3`,
            `*.fc2`, `embed_tokens`. For "layers": the parameters to train. For adapters: modules to train
            entirely in addition (peft's `modules_to_save`), which get no adapters.
        rank: of adapters: inner dimension of their two matrices, at most a target's smaller side.
        alpha: of adapters: their output is multiplied by alpha / rank.
        dropout: of adapters: on their inputs, in training.
        rank_stabilised: of adapters: multiply by alpha / sqrt(rank) instead (arXiv:2312.03732).
        targets: linear layers that get adapters: the ends of their names (`q_proj`), or full names.
            Empty: every linear layer.
        blocks: numbers of the blocks that get adapters, from 0. Empty: all.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = TUNE_RANGES
    method: Literal["full", "layers", "head", "embeddings", "lora", "dora"] = "full"
    parameters: list[str] = field(default_factory=list)
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rank_stabilised: bool = False
    targets: list[str] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    @property
    def adapts(self) -> bool:
        """Whether a run trains adapters, so that its checkpoints contain only these."""
        return self.method in ADAPTERS

    def check(self) -> None:
        """Raise `RecipeError` for values that are out of range or meaningless together."""
        check_numbers("tune", self, self.ranges)
        check_value(
            "tune.dropout", self.dropout, self.dropout < 1, must_be="less than 1", instead="0"
        )
        if self.method == "layers" and not self.parameters:
            raise RecipeError(
                "tune.parameters",
                "is empty, but the method 'layers' trains nothing else",
                "name what to train, e.g. tune.parameters=[layers.3,'*.fc2']",
            )
        for key, methods in (
            ("parameters", ("layers", *ADAPTERS)),
            ("targets", ADAPTERS),
            ("blocks", ADAPTERS),
        ):
            if getattr(self, key) and self.method not in methods:
                raise RecipeError(
                    f"tune.{key}",
                    f"is given, but the method {self.method!r} doesn't use it",
                    f"use tune.method={' or '.join(methods)}, or leave it out",
                )


@dataclass(kw_only=True)
class DataSection:
    """How documents become batches.

    Args:
        cache_dir: folder for image codes and neighbours. null: `CM3_CACHE`, otherwise the user's cache
            folder.
        pack: pack several sequences into a row, each attending only to itself; false: one per row.
        max_text_tokens: longer texts are cut to this many tokens.
        num_streams: virtual loaders, whose rows take turns; processes share them evenly. The batches depend on it, but
            not on the number of processes. null: as many as there are processes when the run starts.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = DATA_RANGES
    #: Every recipe that was stored without the key had one stream.
    earlier: ClassVar[Mapping[str, int]] = {"num_streams": 1}
    cache_dir: str | None = None
    pack: bool = True
    max_text_tokens: int = 64
    num_streams: int | None = None

    def check(self) -> None:
        """Raise `RecipeError` for a count out of range."""
        check_numbers("data", self, self.ranges)


@dataclass(kw_only=True)
class ParallelDecoding:
    """How several codes of a picture are drawn per step. Pictures don't depend on it.

    Args:
        method: "jacobi": codes ahead are guessed, and drawn again until they agree (docs/decoding.md).
        window: codes drawn per step, 1 to 256. "auto": as many as gain most, one where nothing is gained.
    """

    method: Literal["jacobi"] = "jacobi"
    window: int | Literal["auto"] = "auto"


@dataclass(kw_only=True)
class GenerateSection:
    """Defaults of `cm3 generate`.

    Args:
        num_images: pictures per prompt.
        num_candidates: pictures generated for each one shown, of which the section `reranker` chooses the best
            (paper: 8, by CLIP).
        retrieve: prepend retrieved documents to the prompt.
        memory_split: split of the data set to retrieve documents from; null: the training
            split. Ignored if the retriever has a bank.
        max_text_tokens: maximum length of a caption or infilled text.
        parallel: several codes of a picture per step; null or off: one. No part of the recipe's hash.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = GENERATE_RANGES
    num_images: int = 4
    num_candidates: int = 1
    retrieve: bool = True
    memory_split: str | None = None
    max_text_tokens: int = 64
    parallel: ParallelDecoding | Literal[False] | None = field(default_factory=ParallelDecoding)

    @property
    def window(self) -> int | Literal["auto"]:
        """Codes of a picture drawn per step."""
        return self.parallel.window if self.parallel else 1

    def check(self) -> None:
        """Raise `RecipeError` for a count out of range."""
        check_numbers("generate", self, self.ranges)
        check_value(
            "generate.parallel.window",
            self.window,
            self.window == "auto" or 1 <= self.window <= MOST_AHEAD,
            must_be=f"from 1 to {MOST_AHEAD}, or auto",
            instead="auto",
        )


#: (section, key) pairs that change no result of a run: left out of a recipe's hash, and shown only
#: where they are not the default.
_QUIET = ("trackers", "validate_every_minutes", "sample_every_minutes")
UNHASHED = (*(("train", key) for key in _QUIET), ("generate", "parallel"))
#: Keys that are shown, and hashed, only where they are not the default: older recipes keep their hashes.
UNSHOWN = (*UNHASHED, ("train", "patience"))

#: Name -> class of the sections that every recipe has.
FIXED_SECTIONS: dict[
    str,
    type[VocabularySection]
    | type[TrainSection]
    | type[TuneSection]
    | type[DataSection]
    | type[GenerateSection],
] = {
    "vocabulary": VocabularySection,
    "train": TrainSection,
    "tune": TuneSection,
    "data": DataSection,
    "generate": GenerateSection,
}
