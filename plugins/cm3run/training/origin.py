"""Where a run begins: from scratch, from another model's weights, or at its newest checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from cm3core.errors import CheckpointError, CM3Error, RecipeError
from cm3run.checkpoint import (
    IMAGE_TOKENIZER,
    OPTIMIZER,
    TOKENIZER,
    CheckpointState,
    check_decoder,
    check_fingerprints,
    check_recipe,
    find_checkpoint,
    find_model,
    latest_checkpoint,
    load_weights,
    read_divided_state,
    read_recipe,
    read_state,
    read_training_state,
    restore_generators,
)
from cm3run.checkpoint.adapters import base_entry, base_folder, is_adapter, read_adapter
from cm3run.checkpoint.checks import another_tokenizer
from cm3run.processes import is_divided
from cm3run.trust import path_of
from cm3run.tuning import ADAPTER, load_adapters

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.build import Components
    from cm3run.training.loader import BatchLoader
    from cm3run.training.optim import OptimizerGroup
    from cm3run.training.preparation import Preparation


@dataclass(frozen=True, eq=False)
class Origin:
    """What a run takes over from a checkpoint.

        new          nothing
        fine-tuned   tokenizers and weights
        resumed      also optimiser state, random generators, position in the data, counters

    Args:
        folder: the checkpoint; None: a new run.
        state: the checkpoint's; None: a new run.
        resumed: the checkpoint is the run's own.
        base: of the model that the run started from, see `CheckpointState.base`; empty: random
            weights.
        base_folder: that model's checkpoint, where it is needed: in training an adapter.
    """

    folder: Path | None = None
    state: CheckpointState | None = None
    resumed: bool = False
    base: dict[str, str] = field(default_factory=dict)
    base_folder: Path | None = None

    @classmethod
    def find(
        cls,
        recipe: Recipe,
        out_dir: Path,
        registry: Registry,
        *,
        resume: bool,
        trust_endpoints: Sequence[str] = (),
    ) -> Origin:
        """The newest checkpoint in `out_dir`, else the model of `train.start_from`, else nothing.

        Raises:
            CheckpointError: the checkpoint was made with another recipe, or `resume` is False and
                there is one; or the model does not exist, is another one than an adapter was begun
                on, or has another decoder than the recipe.
            RecipeError: a part is to be trained, and there is no model.
        """
        model = recipe.train.start_from
        if model is None and recipe.tune.method != "full":
            raise RecipeError(
                "tune.method",
                f"is {recipe.tune.method!r}, and there is no model to tune",
                "use cm3 tune MODEL RECIPE, or train.start_from=MODEL",
            )
        own = latest_checkpoint(out_dir)
        if own is not None:
            if not resume:
                raise CheckpointError(
                    str(out_dir),
                    f"already holds a run (step {read_state(own).step})",
                    "name another folder, or resume",
                )
            check_recipe(own, read_recipe(own, registry, trust_endpoints=trust_endpoints), recipe)
            state = read_state(own)
            # the user's own recipe names the base, too
            named = [path_of(model)] if model is not None else []
            known = (*trust_endpoints, *named)
            found = (
                base_folder(own, state, registry, trust_endpoints=known)
                if is_adapter(own)
                else None
            )
            return cls(own, state, resumed=True, base=state.base, base_folder=found)
        if model is None:
            return cls()
        other = find_checkpoint(find_model(model, registry))
        base = base_entry(model, other, registry)
        stored = read_recipe(other, registry, trust_endpoints=trust_endpoints)
        check_decoder(other, stored, recipe)
        return cls(other, read_state(other), base=base)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The text tokenizer's files; None: a new run makes its own."""
        return None if self.folder is None else self.folder / TOKENIZER

    @property
    def image_tokenizer_folder(self) -> Path | None:
        """The image tokenizer's files; None: a new run uses the recipe's."""
        return None if self.folder is None else self.folder / IMAGE_TOKENIZER

    @property
    def counters(self) -> CheckpointState:
        """Steps, seconds and tokens done before; zero unless resumed."""
        return self.state if self.resumed and self.state is not None else CheckpointState(step=0)

    def explained(self, error: CM3Error, recipe: Recipe, registry: Registry) -> CM3Error | None:
        """A better error than that of building the components, where that is of the model's files, which
        another tokenizer than the recipe's wrote; None: there is none."""
        if self.folder is None or self.resumed or not error.place.startswith(str(self.folder)):
            return None
        return another_tokenizer(self.folder, read_recipe(self.folder, registry), recipe)

    def check_components(self, components: Components) -> None:
        """Raise `CheckpointError` when ids mean something different than in the checkpoint."""
        if self.folder is not None and self.state is not None:
            check_fingerprints(self.folder, self.state, components)

    def check_data(self, preparation: Preparation) -> None:
        """Raise `CheckpointError` when a run would resume on other documents."""
        if not self.resumed or self.state is None:
            return
        stored = self.state.fingerprints
        if stored.get("dataset") != preparation.fingerprint:
            raise CheckpointError(
                str(self.folder),
                "was trained on other data (documents were added, removed or changed)",
                "start in another folder (-o), from its weights if you like (train.start_from), or "
                "restore the data",
            )
        if stored.get("bank") != preparation.bank_fingerprint:
            raise CheckpointError(
                str(self.folder),
                "was trained with another memory bank (documents were added, removed or changed)",
                "start in another folder (-o), or restore the bank",
            )

    def set_weights(self, decoder: nn.Module) -> None:
        """Load the checkpoint's weights, without its adapter; a new run keeps its initial ones."""
        folder = self.folder if self.base_folder is None else self.base_folder
        if folder is not None:
            load_weights(decoder, folder)

    def set_adapters(self, decoder: nn.Module) -> None:
        """Load the adapter of a run that resumes, if it trains one."""
        if self.folder is not None and self.base_folder is not None:
            load_adapters(decoder, read_adapter(self.folder), str(self.folder / ADAPTER))

    def restore(self, optimizer: OptimizerGroup, loader: BatchLoader) -> None:
        """Restore optimiser, random generators and loader to where the run stopped."""
        if not self.resumed or self.folder is None or self.state is None:
            return
        if any(is_divided(parameter) for parameter in optimizer.parameters):
            tensors, generators = read_divided_state(self.folder, optimizer.empty_state)
        else:
            tensors, generators = read_training_state(self.folder)
        if self.state.step > 0 and not tensors and optimizer.parameters:
            raise CheckpointError(
                str(self.folder / OPTIMIZER),
                f"holds no state of the optimiser, after {self.state.step} steps",
                "use an older checkpoint, or copy it again from where it came",
            )
        optimizer.load_state_tensors(tensors)
        restore_generators(generators)
        loader.load_state_dict(self.state.loader)

    def in_words(self, out_dir: Path) -> str:
        """For the line printed at the start of a run."""
        if self.resumed:
            return f"resumes from {self.folder}"
        weights = "" if self.folder is None else f" from the weights of {self.folder}"
        return f"starts in {out_dir}{weights}"
