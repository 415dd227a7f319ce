"""From a recipe to a run that is ready for its next step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, CM3Error
from cm3core.files import check_links, check_writable, make_folder, write_text
from cm3core.plugins.registry import plugin_versions
from cm3core.recipe.layers import STORED
from cm3core.recipe.recipe import files_of
from cm3run.build import Components, build
from cm3run.checkpoint import CheckpointState, remove_leftovers
from cm3run.checkpoint.layout import PROVENANCE
from cm3run.checkpoint.words import TrainingWords, words_of_training
from cm3run.devices import choose_device, choose_precision, device_memory
from cm3run.processes import Processes
from cm3run.training.kept import note_on_codes, note_on_words
from cm3run.training.licences import check_licences, write_provenance
from cm3run.training.loader import micro_batches
from cm3run.training.loss import GROUPS
from cm3run.training.memory import check_training_fits
from cm3run.training.metrics import MetricsLog, NoLog
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.origin import Origin
from cm3run.training.parallel import parallel_of
from cm3run.training.preparation import Preparation
from cm3run.training.state import TrainState
from cm3run.training.tracking import Tracking, trackers_of
from cm3run.tuning import select_parameters

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


def start(
    recipe: Recipe,
    out_dir: Path,
    registry: Registry,
    *,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
    processes: Processes | None = None,
    shard: int | None = None,
    trust_endpoints: Sequence[str] = (),
) -> TrainState:
    """Build everything, and restore the state of the run's `Origin`. Arguments as for `train`."""
    schedule, processes = Schedule.of(recipe.train), processes or Processes()
    trackers = trackers_of(recipe, registry) if processes.is_first else []
    micro_batches(recipe.train.batch_rows, recipe.train.accumulate, processes.world_size)
    processes.check_same({**plugin_versions(registry.plugins), "recipe": recipe.hash})
    check_writable(out_dir, folder=True)
    check_links(out_dir)
    origin = Origin.find(recipe, out_dir, registry, resume=resume, trust_endpoints=trust_endpoints)
    base = {f"base {name}": value for name, value in origin.base.items()}
    processes.check_same({"checkpoint": str(origin.folder), **base})
    chosen = choose_device(device)
    if recipe.attention is not None:
        recipe.attention.check_training(chosen.type)
    dtype, reason = choose_precision(recipe.train.precision, chosen)
    processes.check_same(
        {"precision": "fp32" if dtype is None else "bf16"},
        "set train.precision to fp32 or bf16: auto asks each machine",
    )
    processes.check_same(
        {"--shard": "not given" if shard is None else str(shard)},
        "start all with the same --shard",
    )
    machine, on_cpu = device_memory(chosen)
    if on_cpu:
        machine = machine.shared(processes.num_local)
    parallel = parallel_of(recipe, processes, chosen, dtype, machine, shard)
    warning = check_training_fits(
        recipe, machine, on_cpu=on_cpu, bf16=dtype is not None, devices=parallel.num_shards
    )
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    with processes.in_turn():  # the first one fills the caches
        try:
            components = build(
                recipe,
                registry,
                stage="train",
                tokenizer_folder=origin.tokenizer_folder,
                image_tokenizer_folder=origin.image_tokenizer_folder,
                device=chosen,
                decoder_device=parallel.build_device(chosen),
            )
        except CM3Error as error:
            if (better := origin.explained(error, recipe, registry)) is not None:
                raise better from error
            raise
        origin.check_components(components)
        check_licences(components.source, recipe.train.licences)
        preparation = Preparation(components, progress=progress)
    origin.check_data(preparation)
    processes.check_same({**components.fingerprints(), "data set": preparation.fingerprint})
    decoder = components.decoder.module
    decoder.train()
    drawn_on = parallel.build_device(chosen)
    if recipe.train.start_from_codebook and origin.folder is None and drawn_on.type != "meta":
        _start_from_codebook(components, drawn_on)
    parallel.place(components.decoder, chosen, compiled=recipe.train.compile)
    origin.set_weights(decoder)
    rows = select_parameters(
        components.decoder, recipe.tune, components.vocabulary, seed=recipe.train.seed
    )
    origin.set_adapters(decoder)
    optimizer = OptimizerGroup(components.decoder, recipe.train, dtype or torch.float32, rows=rows)
    loader = preparation.loader(processes)
    torch.manual_seed(recipe.train.seed)
    origin.restore(optimizer, loader)
    done = origin.counters
    if (own_seed := processes.seed(recipe.train.seed, done.step)) is not None:
        torch.manual_seed(own_seed)
    finished = origin.resumed and schedule.progress(done.step, done.elapsed_s) >= 1
    processes.first(lambda: _write_description(preparation, out_dir, finished=finished))
    if progress:
        parameters = sum(p.numel() for p in decoder.parameters())
        trained = sum(p.numel() for p in optimizer.parameters)
        part = "" if trained == parameters else f", {trained:,} of them trained"
        num_threads = torch.get_num_threads()
        print(
            f"{recipe.name} {origin.in_words(out_dir)}: {parameters / 1e6:.2f}M parameters"
            f"{part}, {len(components.source):,} documents, {chosen}, "
            f"{reason}, {num_threads} thread{'' if num_threads == 1 else 's'}"
            f"{parallel.in_words(processes)}",
            file=sys.stderr,
        )
        for note in [] if origin.resumed else _notes(components, origin.folder):
            print(f"note: {note}", file=sys.stderr)
    first = processes.is_first
    sums_G2 = _loss_sums(done, chosen, len(GROUPS) * max(1, len(components.source.parts)))
    return TrainState(
        recipe,
        out_dir,
        components,
        preparation,
        decoder,
        optimizer,
        schedule,
        loader,
        MetricsLog(out_dir, done.step) if first else NoLog(),
        chosen,
        dtype,
        processes,
        parallel,
        words_of_training(components.source.texts(), len(components.source), origin.folder)
        if first and not components.source.is_far
        else None,
        done.step,
        done.elapsed_s,
        done.tokens,
        base=origin.base,
        trackers=Tracking(trackers, chosen),
        # those of all processes, summed when they are logged
        sums_G2=sums_G2 if first else torch.zeros_like(sums_G2),
    )


def _notes(components: Components, base: Path | None) -> list[str]:
    """What a user should know before the first step.

    `base`: the model that is tuned; None: a new one."""
    known = None
    if base is not None:
        with suppress(CheckpointError):  # damaged: the run does without
            known = TrainingWords.read(base)
    source = components.source
    notes = (note_on_codes(source, components.image_tokenizer), note_on_words(source, known))
    return [note for note in notes if note is not None]


def _write_description(preparation: Preparation, out_dir: Path, *, finished: bool) -> None:
    """Write what a run's folder says of it, and remove what killed runs left.

    `finished`: nothing will be trained, so that what it says of the training that was done stays."""
    components = preparation.components
    make_folder(out_dir)
    remove_leftovers(out_dir)
    if finished and all((out_dir / name).is_file() for name in (STORED, PROVENANCE)):
        return
    for name, text in files_of(components.recipe, components.registry).items():
        write_text(out_dir / name, text)
    write_provenance(
        out_dir, components.source, preparation.memory if preparation.retrieves else None
    )


def _loss_sums(done: CheckpointState, device: torch.device, num_groups: int) -> Tensor:
    """Sums since the last metrics record, float32 [G, 2]; zero where none are stored."""
    if not done.loss_sums:
        return torch.zeros(num_groups, 2, device=device)
    try:
        sums_G2 = torch.tensor(done.loss_sums, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        sums_G2 = torch.zeros(0)
    if sums_G2.shape != (num_groups, 2):
        raise CheckpointError(
            "checkpoint's state",
            f"loss_sums is not {num_groups} pairs of numbers",
            "resume from another checkpoint, or set it to []",
        )
    return sums_G2


def _start_from_codebook(components: Components, device: torch.device) -> None:
    """Give the decoder the image tokenizer's codebook vectors, if it has any."""
    codebook = components.image_tokenizer.codebook()
    if codebook is not None:
        components.decoder.start_from_codebook(codebook.to(device), components.vocabulary)
