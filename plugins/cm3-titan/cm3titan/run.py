"""A run with torchtitan: what `cm3 train` prepares, torchtitan's training, and a model of this framework at the end.

RUN/recipe.yaml, metrics.jsonl     as of `cm3 train`
RUN/checkpoints/step-00000000/     the initial weights, and what ids mean
RUN/checkpoints/step-N/            the trained model
RUN/titan/checkpoints/step-M/      torchtitan's checkpoints (DCP), from which a run resumes
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cm3core.errors import CheckpointError, CM3Error, TrustError
from cm3core.files import make_folder, write_text
from cm3core.interfaces.reach import Reach
from cm3core.outputs import OutputFolder
from cm3core.recipe.recipe import files_of
from cm3run.build import Stored, build
from cm3run.checkpoint import CheckpointState, Snapshot, read_state, save_checkpoint
from cm3run.checkpoint.layout import latest_checkpoint
from cm3run.checkpoint.tensors import weights_of
from cm3run.checkpoint.writing import step_name
from cm3run.devices import choose_precision
from cm3run.processes import Processes
from cm3run.training.data_notes import check_licences, write_provenance
from cm3run.training.preparation import Preparation
from cm3run.training.saving import DIVERGED, run_lock
from cm3run.training.start import Origin
from cm3run.trust import own_of, record_own
from cm3titan.settings import CHECKPOINTS, FOLDER, Setting, check_recipe
from cm3titan.share import Share, loader_state
from cm3titan.weights import newest_step, read_step, shapes_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.training.packing import BatchLoader

#: Recorded for torchtitan's folder of a run that this user's command made.
OWN = "torchtitan's checkpoints"
#: The initial weights, in the run's folder.
INITIAL = Path("checkpoints") / step_name(0)


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained, and where.

    Args:
        recipe: composed and checked.
        registry: of its plugins.
        out_dir: the run's folder.
        processes: all that train.
        device: this process's.
        settings: torchtitan's own.
        progress: show bars and notes.
        trusted: read torchtitan's checkpoints in the folder even if this user's commands didn't make them.
    """

    recipe: Recipe
    registry: Registry
    out_dir: Path
    processes: Processes
    device: torch.device
    settings: Sequence[Setting] = ()
    progress: bool = True
    trusted: bool = False


def train(job: Job) -> Path:
    """Train, or resume; return the checkpoint of the trained model.

    Raises:
        RecipeError: torchtitan can't train this recipe, or not with these settings.
        CheckpointError: the folder has another run.
    """
    check_recipe(job.recipe)
    if job.device.type == "cpu":
        from cm3titan.on_cpu import use_cpu

        use_cpu()
    from cm3titan.config import Parts, Plan, trainer_config

    plan = Plan.of(job.recipe, job.settings, job.processes.world_size)
    _claim(job)
    with run_lock(job.out_dir, job.processes), _group(job.device):
        job.processes.first(lambda: check_trusted(job))
        preparation, num_streams = _prepared(job, plan.num_shares)
        components = preparation.components

        def make_loader(share: Share) -> BatchLoader:
            return preparation.loader(share, num_streams)

        dtype, _ = choose_precision(job.recipe.train.precision, job.device)
        parts = Parts(
            recipe=job.recipe,
            out_dir=job.out_dir,
            plan=plan,
            vocab_size=components.vocabulary.size,
            grid=components.image_tokenizer.grid,
            make_loader=make_loader,
            initial=job.out_dir / INITIAL,
            bf16=dtype is not None,
            on_cpu=job.device.type == "cpu",
        )
        config = trainer_config(parts, job.settings)
        rank = job.processes.rank
        with _lines(shown=job.progress and rank in (0, plan.metrics_rank)), _collected():
            trainer: Any = config.build()
            try:
                trainer.train()
            except RuntimeError as error:
                if not str(error).startswith("Loss is not finite"):
                    raise
                raise CM3Error(
                    f"training, step {trainer.step}", "the loss is no longer finite", DIVERGED
                ) from error
            finally:
                trainer.close()
        return job.processes.first(lambda: export(job, preparation))


def check_trusted(job: Job) -> None:
    """Raise `TrustError` for torchtitan's checkpoints that this user's commands didn't make: reading them can run code."""
    folder = job.out_dir / FOLDER
    own = any(one.target == OWN for one in own_of(folder))
    if own or job.trusted or newest_step(folder / CHECKPOINTS) is None:
        return
    raise TrustError(
        str(folder),
        "was not made by your commands on this machine, and torchtitan's checkpoints can run code when they are read",
        "if you trust who made it: --trust-checkpoints; otherwise train.start_from with the run's own checkpoints",
    )


def export(job: Job, preparation: Preparation) -> Path:
    """Write torchtitan's newest checkpoint as one of this framework; called in one process.

    It has AdamW's state and the position in the data, so `cm3 train` can continue the run.

    Raises:
        CheckpointError: it can't be read.
    """
    components = preparation.components
    folder = job.out_dir / FOLDER / CHECKPOINTS
    step = newest_step(folder)
    assert step is not None, "torchtitan saves the last step, and export_only looks"
    decoder = check_recipe(job.recipe)
    shapes = shapes_of(components.decoder.module.named_parameters())
    stored = read_step(folder / f"step-{step}", shapes, tied=decoder.tie_embeddings)
    initial = read_state(job.out_dir / INITIAL) if (job.out_dir / INITIAL).is_dir() else None
    snapshot = Snapshot(
        weights=stored.weights,
        optimizer_state=stored.optimizer,
        state=_state(
            preparation,
            step=step,
            tokens=int(stored.train_state.get("tokens", 0)),
            loader=loader_state(stored.loader, len(components.source.parts)),
            base={} if initial is None else initial.base,
        ),
        components=components,
    )
    return save_checkpoint(job.out_dir, snapshot, keep=job.recipe.train.keep_checkpoints)


def _prepared(job: Job, num_shares: int) -> tuple[Preparation, int]:
    """The data and, for a new run, its initial weights on disk; the number of virtual loaders."""
    recipe, registry, processes = job.recipe, job.registry, job.processes
    origin = Origin.find(recipe, job.out_dir, registry, resume=True)
    if origin.resumed and not (job.out_dir / FOLDER).is_dir():
        raise CheckpointError(
            str(job.out_dir),
            "has a run of cm3 train",
            "name another folder (-o); to start from its weights, set train.start_from",
        )
    latest, own = origin.counters.step, newest_step(job.out_dir / FOLDER / CHECKPOINTS) or 0
    if latest > own:
        raise CheckpointError(
            str(job.out_dir),
            f"has a checkpoint of step {latest}, but torchtitan's newest one is of step {own}",
            "continue with cm3 train, or name another folder (-o) and set train.start_from",
        )
    num_streams = origin.num_streams(recipe, Share(0, num_shares))
    processes.check_same({"recipe": recipe.hash, "checkpoint": str(origin.folder)})
    new = processes.is_first and not origin.resumed
    with processes.in_turn():  # the first process fills the caches
        components = build(
            recipe,
            registry,
            stage="train",
            stored=Stored(
                text_tokenizer=origin.tokenizer_folder,
                image_tokenizer=origin.image_tokenizer_folder,
            ),
            device=job.device,
            decoder_device=torch.device("cpu" if new else "meta"),
        )
        origin.check_components(components)
        check_licences(components.source, recipe.train.licences)
        preparation = Preparation(components, progress=job.progress)
    origin.check_data(preparation)
    processes.check_same({**components.fingerprints(), "data set": preparation.fingerprint})
    if not origin.resumed:
        processes.first(lambda: _begin(job, origin, preparation, num_streams))
    return preparation, num_streams


def _claim(job: Job) -> None:
    """Refuse a folder in which somebody else's files would be replaced by a new run."""
    if latest_checkpoint(job.out_dir) is None:
        OutputFolder(job.out_dir, f"{FOLDER}/**/*")


def _begin(job: Job, origin: Origin, preparation: Preparation, num_streams: int) -> None:
    """Write a new run's description and its initial weights, those that `cm3 train` would begin with."""
    components, recipe = preparation.components, job.recipe
    codebook = components.image_tokenizer.codebook()
    if recipe.train.start_from_codebook and origin.folder is None and codebook is not None:
        components.decoder.start_from_codebook(codebook.to("cpu"), components.vocabulary)
    module = components.decoder.module
    origin.set_weights(module)
    make_folder(job.out_dir / FOLDER)
    record_own(job.out_dir / FOLDER, [Reach("", OWN, "")])
    for name, text in files_of(recipe, job.registry).items():
        write_text(job.out_dir / name, text)
    write_provenance(
        job.out_dir, components.source, preparation.memory if preparation.retrieves else None
    )
    loader = preparation.loader(Processes(), num_streams).state_dict()
    state = _state(preparation, step=0, tokens=0, loader=loader, base=origin.base)
    snapshot = Snapshot(
        weights=weights_of(module), optimizer_state={}, state=state, components=components
    )
    save_checkpoint(job.out_dir, snapshot)
    module.to("meta")


def _state(
    preparation: Preparation,
    *,
    step: int,
    tokens: int,
    loader: dict[str, Any],
    base: dict[str, str],
) -> CheckpointState:
    components = preparation.components
    fingerprints = {**components.fingerprints(), "dataset": preparation.fingerprint}
    if preparation.bank_fingerprint is not None:
        fingerprints["bank"] = preparation.bank_fingerprint
    return CheckpointState(
        step,
        tokens=tokens,
        loader=loader,
        vocabulary=components.vocabulary.to_dict(),
        fingerprints=fingerprints,
        max_spans=components.serializer.max_spans,
        base=base,
    )


@contextmanager
def _lines(*, shown: bool) -> Iterator[None]:
    """A context in which torchtitan's log goes to stderr, or only its errors."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter("[titan] %(asctime)s %(message)s"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO if shown else logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)


@contextmanager
def _collected() -> Iterator[None]:
    """A context after which Python collects garbage by itself again: torchtitan does so between steps."""
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _group(device: torch.device) -> Iterator[None]:
    """A context in which torch's processes have a group and a number on their machine, even a single one."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if dist.is_initialized():
        yield
        return
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl", store=HashStore(), rank=0, world_size=1
    )
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = before or "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        dist.destroy_process_group()


def export_only(job: Job) -> Path:
    """Write torchtitan's newest checkpoint as one of this framework, without training; see `export`."""
    check_recipe(job.recipe)
    folder = job.out_dir / FOLDER / CHECKPOINTS
    if newest_step(folder) is None:
        raise CheckpointError(
            str(folder),
            "has no complete checkpoint",
            "train first: the same command without --export",
        )
    _claim(job)
    with run_lock(job.out_dir, job.processes):
        job.processes.first(lambda: check_trusted(job))
        preparation, _ = _prepared(job, 1)
        return job.processes.first(lambda: export(job, preparation))
