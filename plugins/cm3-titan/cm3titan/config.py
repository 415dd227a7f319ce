"""From a recipe to torchtitan's config, with torchtitan's own settings on top of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.components.metrics import _get_metrics_rank
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from torchtitan.config.configs import CompileConfig, DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.distributed.parallel_dims import ParallelDims
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.protocols.model_spec import ModelSpec

from cm3core.errors import RecipeError
from cm3run.training.optim import Schedule
from cm3run.training.packing import BatchLoader, micro_batches
from cm3titan.adapter import CheckpointAdapter
from cm3titan.data import RecipeLoader
from cm3titan.loss import WeightedCrossEntropy
from cm3titan.model import CM3LeonModel, model_config
from cm3titan.settings import CHECKPOINTS, FOLDER, RECOMPUTED, Setting, apply_settings, check_recipe
from cm3titan.sharding import parallelize
from cm3titan.share import Share
from cm3titan.trainer import NoTokenizer, RecipeSchedule, RecipeTrainer, RunMetrics

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3core.recipe.sections import TrainSection

#: Steps between two checkpoints, unless the recipe says.
CHECKPOINT_EVERY = 500
#: torchtitan's own default, "spmd_types", needs a nightly build of torch: torch 2.13's FSDP2 doesn't know its types.
BACKEND = "partial_dtensor"
#: A row's logits are computed in at most so many parts.
LOSS_CHUNKS = 8
#: The parameters with weight decay, as in `cm3 train`: the matrices of the layers.
MATRICES = r"layers\..*(_proj|fc1|fc2)\.weight$"
_RECOMPUTED = {"none": None, "selective": SelectiveAC.Config, "full": FullAC.Config}


@dataclass(frozen=True)
class Plan:
    """How processes share a recipe's training.

    Args:
        parallelism: torchtitan's section.
        world_size: number of processes.
    """

    parallelism: ParallelismConfig
    world_size: int

    @classmethod
    def of(cls, recipe: Recipe, settings: Sequence[Setting], world_size: int) -> Plan:
        """Raises `RecipeError` if the degrees don't fit each other, the processes or the decoder."""
        parallelism = ParallelismConfig(spmd_backend=BACKEND)
        holder = _Holder(parallelism)
        apply_settings(holder, [one for one in settings if one.key.startswith("parallelism.")])
        plan = cls(parallelism, world_size)
        plan._check(recipe)
        return plan

    @property
    def metrics_rank(self) -> int:
        """Number of the process that knows the loss."""
        dims = ParallelDims.from_config(self.parallelism, self.world_size)
        schedule = self.parallelism.pipeline_parallel_schedule
        return cast(int, _get_metrics_rank(parallel_dims=dims, pp_schedule=schedule))

    @property
    def num_shares(self) -> int:
        """Number of groups of processes that hold different data."""
        own = self.parallelism
        together = own.tensor_parallel_degree * own.context_parallel_degree
        number: int = self.world_size // (together * own.pipeline_parallel_degree)
        return number

    def _check(self, recipe: Recipe) -> None:
        own, decoder = self.parallelism, check_recipe(recipe)
        try:
            ParallelDims.from_config(own, self.world_size)
        except AssertionError as error:
            raise RecipeError(
                "--titan parallelism",
                f"doesn't fit {self.world_size} processes: {str(error) or 'a degree is below 1'}",
                "choose degrees whose product is the number of processes",
            ) from error
        tensor, pipeline = own.tensor_parallel_degree, own.pipeline_parallel_degree
        parts = 2 * own.context_parallel_degree if own.context_parallel_degree > 1 else 1
        parts *= tensor if own.enable_sequence_parallel else 1
        for key, wrong, cause, step in (
            (
                "decoder.num_heads",
                decoder.num_heads % tensor,
                f"{decoder.num_heads} heads can't be divided among {tensor} processes",
                "choose a parallelism.tensor_parallel_degree that divides them",
            ),
            (
                "decoder.context_length",
                decoder.context_length % parts,
                f"rows of {decoder.context_length} tokens can't be divided into {parts} parts",
                "choose a multiple of that",
            ),
            (
                "decoder.tie_embeddings",
                pipeline > 1 and decoder.tie_embeddings,
                "is true, but the stages of a pipeline can't share a weight",
                "set decoder.tie_embeddings=false",
            ),
            (
                "train.z_loss",
                tensor > 1 and recipe.train.z_loss,
                "needs whole rows of logits, which tensor parallelism divides",
                "set train.z_loss=0",
            ),
            (
                "--titan parallelism.expert_parallel_degree",
                own.expert_parallel_degree > 1,
                "is for mixtures of experts, which this decoder is not",
                "leave it out",
            ),
        ):
            if wrong:
                raise RecipeError(key, cause, step)


@dataclass
class _Holder:
    parallelism: ParallelismConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What torchtitan trains.

    Args:
        recipe: composed and checked.
        out_dir: the run's folder.
        plan: how processes share the training.
        vocab_size: number of ids.
        grid: rows and columns of a picture's codes.
        make_loader: makes the loader of a share of the data.
        initial: folder of the safetensors that a new run begins with.
        bf16: compute in bfloat16; weights and sums stay float32.
        on_cpu: attend without FlexAttention, whose gradient needs a GPU.
    """

    recipe: Recipe
    out_dir: Path
    plan: Plan
    vocab_size: int
    grid: tuple[int, int]
    make_loader: Callable[[Share], BatchLoader]
    initial: Path
    bf16: bool
    on_cpu: bool


def trainer_config(parts: Parts, settings: Sequence[Setting]) -> RecipeTrainer.Config:
    """torchtitan's config. `settings`: its own, which replace the recipe's; raises `RecipeError` for a wrong one."""
    recipe, plan = parts.recipe, parts.plan
    section, decoder = recipe.train, check_recipe(recipe)
    model = model_config(decoder, parts.vocab_size, parts.grid, flex=not parts.on_cpu)
    loss = WeightedCrossEntropy.Config(vocab_size=parts.vocab_size, z_loss=section.z_loss)
    length = decoder.context_length // plan.parallelism.context_parallel_degree
    config = RecipeTrainer.Config(
        model_spec=model_spec(recipe.name, model),
        hf_assets_path="",
        dump_folder=str(parts.out_dir / FOLDER),
        tokenizer=NoTokenizer.Config(),
        dataloader=RecipeLoader.Config(make=parts.make_loader),
        loss=ChunkedLossWrapper.Config(num_chunks=_chunks(length), loss_fn=loss),
        optimizer=_optimizer(section),
        lr_scheduler=RecipeSchedule.Config(multiplier=Schedule.of(section).multiplier),
        training=_training(parts),
        parallelism=plan.parallelism,
        checkpoint=_checkpoint(section, parts.initial),
        activation_checkpoint=FullAC.Config() if decoder.activation_checkpointing else None,
        compile=CompileConfig(enable=section.compile, components=["model"]),
        metrics=RunMetrics.Config(
            log_freq=section.log_every_steps,
            out_dir=str(parts.out_dir),
            disable_color_printing=not sys.stderr.isatty(),
        ),
        debug=DebugConfig(seed=section.seed),
    )
    own = [one for one in settings if not one.key.startswith("parallelism.")]
    for setting in (one for one in own if one.key == RECOMPUTED):
        config.activation_checkpoint = _recomputed(setting.value)
    apply_settings(config, [one for one in own if one.key != RECOMPUTED])
    return config


def _training(parts: Parts) -> TrainingConfig:
    section, plan = parts.recipe.train, parts.plan
    assert section.steps is not None
    sizes = micro_batches(section.batch_rows, section.accumulate, plan.num_shares)
    # the pieces of a pipeline's rows are its micro-batches
    rows = sum(sizes) if plan.parallelism.pipeline_parallel_degree > 1 else math.gcd(*sizes)
    return TrainingConfig(
        local_batch_size=rows,
        global_batch_size=section.batch_rows * section.accumulate,
        seq_len=check_recipe(parts.recipe).context_length,
        max_norm=section.clip_norm or float("inf"),
        steps=section.steps,
        disable_cuda_graphs=True,
        mixed_precision_param="bfloat16" if parts.bf16 else "float32",
    )


def _checkpoint(section: TrainSection, initial: Path) -> CheckpointManager.Config:
    return CheckpointManager.Config(
        enable=True,
        folder=CHECKPOINTS,
        interval=section.checkpoint_every_steps or CHECKPOINT_EVERY,
        initial_load_path=str(initial.resolve()),
        initial_load_in_hf=True,
        last_save_model_only=False,
        keep_latest_k=max(2, section.keep_checkpoints),
        async_mode="async" if section.save_in_background else "disabled",
    )


def _recomputed(name: Any) -> Any:
    name = "none" if name is None else name
    if name not in _RECOMPUTED:
        raise RecipeError(
            f"--titan {RECOMPUTED}",
            f"is {name!r}",
            f"use one of {', '.join(_RECOMPUTED)}",
        )
    made = _RECOMPUTED[name]
    return None if made is None else made()


def _chunks(length: int) -> int:
    return max(number for number in range(1, LOSS_CHUNKS + 1) if length % number == 0)


def model_spec(name: str, model: CM3LeonModel.Config) -> ModelSpec:
    """torchtitan's bundle of a model and the functions that divide it."""
    return ModelSpec(
        name="cm3leon",
        flavor=name,
        model=model,
        parallelize_fn=parallelize,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=CheckpointAdapter,
    )


def _optimizer(section: TrainSection) -> OptimizersContainer.Config:
    def group(pattern: str, decay: float) -> ParamGroupConfig:
        return ParamGroupConfig(
            pattern=pattern,
            optimizer_name="AdamW",
            optimizer_kwargs={
                "lr": section.learning_rate,
                "betas": tuple(section.betas),
                "eps": section.eps,
                "weight_decay": decay,
            },
        )

    return OptimizersContainer.Config(
        param_groups=[group(MATRICES, section.weight_decay), group(".*", 0.0)],
        implementation="fused",
    )
