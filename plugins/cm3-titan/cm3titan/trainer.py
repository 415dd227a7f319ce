"""torchtitan's trainer for our batches, the recipe's schedule, and the run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper
from torchtitan.components.metrics import MetricsProcessor, _get_metrics_rank
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.distributed import utils as dist_utils
from torchtitan.models.common.attention import FlexAttention
from torchtitan.trainer import Trainer

from cm3run.training.metrics import MetricsLog
from cm3titan.loss import WeightedCrossEntropy, label_weight
from cm3titan.masks import block_mask, shares_of_row, whole_mask


class NoTokenizer(BaseTokenizer):
    """In place of torchtitan's tokenizer: batches are made of ids."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        """No settings."""

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()

    def encode(self, *args: Any, **kwargs: Any) -> list[int]:
        raise NotImplementedError  # abstract there, and asked by nothing: batches are made of ids

    def decode(self, *args: Any, **kwargs: Any) -> str:
        raise NotImplementedError  # abstract there, and asked by nothing: batches are made of ids

    def get_vocab_size(self) -> int:
        raise NotImplementedError  # abstract there, and asked by nothing: batches are made of ids


class RecipeSchedule(LRSchedulersContainer):
    """The recipe's learning rate, step by step."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        """`multiplier`: step from 0 -> fraction of the peak."""

        multiplier: Callable[[int], float]

        def build(
            self, *, optimizers: OptimizersContainer, training_steps: int
        ) -> LRSchedulersContainer:
            """A schedule for the optimisers."""
            return LRSchedulersContainer(optimizers, self.multiplier)


class RunMetrics(MetricsProcessor):
    """Writes the run's `metrics.jsonl`, too."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        """`out_dir`: the run's folder."""

        out_dir: str

    def __init__(
        self, config: Config, *, parallel_dims: Any, pp_schedule: str, **options: Any
    ) -> None:
        super().__init__(config, parallel_dims=parallel_dims, pp_schedule=pp_schedule, **options)
        rank = _get_metrics_rank(parallel_dims=parallel_dims, pp_schedule=pp_schedule)
        self._writes = torch.distributed.get_rank() == rank
        self._log: MetricsLog | None = None

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """torchtitan's lines, and one of ours."""
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)
        if not self._writes:
            return
        values = {"train/loss": global_avg_loss, "train/gradient_norm": grad_norm}
        rates = [one for name, one in (extra_metrics or {}).items() if name.startswith("lr/")]
        if rates:
            values["train/learning_rate"] = rates[0]
        if self._log is None:
            self._log = MetricsLog(Path(cast(Any, self.config).out_dir), step - 1)
        self._log.write(step, values)

    def close(self) -> None:
        super().close()
        if self._log is not None:
            self._log.close()


class RecipeTrainer(Trainer):
    """Divides each step's loss by the sum of its weights, and makes the masks of packed sequences."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        """torchtitan's."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        loss = self.loss_fn
        inner = loss.loss_fn if isinstance(loss, ChunkedLossWrapper) else loss
        assert isinstance(inner, WeightedCrossEntropy)
        # one tensor for all steps, whose address a CUDA graph may keep
        self._step_weight = inner.step_weight = torch.zeros((), device=self.device)
        self._tokens = torch.zeros((), device=self.device, dtype=torch.float64)
        self._flex = isinstance(
            cast(Any, self.model_config).first_attention.inner_attention, FlexAttention.Config
        )

    def train_step(self, data_iterator: Iterator[tuple[dict[str, Tensor], Tensor]]) -> None:
        """One step; its batches are fetched first, because their weights are summed first."""
        number = self.gradient_accumulation_steps * self.num_pipeline_parallel_microbatches
        batches = list(islice(data_iterator, number))
        counted = [
            torch.stack([label_weight(labels), (labels != IGNORE_INDEX).sum()])
            for _, labels in batches
        ]
        both = torch.stack(counted).sum(0).to(self.device)
        if self.parallel_dims.dp_enabled:
            both = dist_utils.dist_sum_tensor(both, self.parallel_dims.get_mesh("batch"))
        self._step_weight.copy_(both[0])
        self._tokens += both[1]
        super().train_step(iter(batches))

    def pp_forward_backward_step(
        self,
        *,
        input_dict_mbs: list[dict[str, Tensor]],
        label_mbs: list[Tensor],
        global_valid_tokens: Tensor,
    ) -> Tensor:
        """The micro-batches of a pipeline as one batch, because torch 2.13's schedules divide batches themselves."""
        whole = {
            name: torch.cat([one[name] for one in input_dict_mbs]) for name in input_dict_mbs[0]
        }
        inputs, labels, extra = self.post_dataloading_process(whole, torch.cat(label_mbs))
        losses: list[Tensor] = []
        with self.train_context():
            cast(Any, self).pp_schedule.step(
                *((inputs,) if self.pp_has_first_stage else ()),
                target=labels if self.pp_has_last_stage else None,
                losses=losses if self.pp_has_last_stage else None,
                loss_kwargs={"global_valid_tokens": global_valid_tokens},
                return_outputs=False,
                **extra,
            )
        if not self.pp_has_last_stage:
            return torch.tensor([-1.0], device=self.device)
        return torch.stack(losses).sum().to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's counters, and the number of tokens trained on (with weights above zero)."""
        return {**super().state_dict(), "tokens": int(self._tokens)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the counters."""
        super().load_state_dict(state_dict)
        self._tokens.fill_(state_dict["tokens"])

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """This process's part of the rows, and the mask of their tokens."""
        dims = self.parallel_dims
        row_order = torch.arange(labels.shape[1], device=labels.device)
        own = row_order
        if dims.cp_enabled:
            mesh = dims.get_mesh("cp")
            shares = shares_of_row(labels.shape[1], mesh.size()).to(labels.device)
            row_order, own = shares.flatten(), shares[mesh.get_local_rank()]
            input_dict = {name: one[:, own].contiguous() for name, one in input_dict.items()}
            labels = labels[:, own].contiguous()
        make = block_mask if self._flex else whole_mask
        mask = make(input_dict["kv_start"], own, row_order)
        inputs, extra = input_dict["input"], {"attention_masks": mask}
        extra |= {name: input_dict[name] for name in ("positions", "cells")}
        self.ntokens_seen += labels.numel()
        return inputs, labels, extra
