"""From a recipe to a run that is ready for its next step; where it starts: from scratch, from another model's weights,
or at its newest checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cm3core.errors import CheckpointError, CM3Error
from cm3core.files import check_links, make_folder, write_text
from cm3core.outputs import OutputFolder
from cm3core.plugins.registry import plugin_versions
from cm3core.recipe.layers import STORED
from cm3core.recipe.recipe import files_of
from cm3run.build import Components, Stored, build
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
    remove_leftovers,
    restore_generators,
)
from cm3run.checkpoint.adapters import base_entry, base_folder, is_adapter, read_adapter
from cm3run.checkpoint.layout import PROVENANCE
from cm3run.checkpoint.opening import another_tokenizer
from cm3run.checkpoint.words import TrainingWords, words_of_training
from cm3run.devices import choose_device, choose_precision, device_memory
from cm3run.processes import Processes, is_divided
from cm3run.training.ahead import AheadLoader
from cm3run.training.data_notes import (
    check_licences,
    note_on_codes,
    note_on_words,
    write_provenance,
)
from cm3run.training.memory import check_training_fits
from cm3run.training.metrics import GROUPS, MetricsLog, NoLog, Tracking, trackers_of
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.packing import (
    BatchLoader,
    micro_batches,
    note_on_streams,
    streams_of_new_run,
)
from cm3run.training.parallel import OneProcess, parallel_of
from cm3run.training.preparation import Preparation
from cm3run.training.state import TrainState
from cm3run.trust import target_of
from cm3run.tuning import ADAPTER, load_adapters, select_parameters

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Origin:
    """The state that a run takes over from a checkpoint.

        new          nothing
        fine-tuned   tokenizers and weights
        resumed      also optimiser state, random generators, position in the data, counters

    Args:
        folder: the checkpoint; None: a new run.
        state: the checkpoint's; None: a new run.
        resumed: the checkpoint is the run's own.
        base: the model that the run started from, see `CheckpointState.base`; empty: random
            weights.
        base_folder: that model's checkpoint, if it is needed: for training an adapter.
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
        """The newest checkpoint in `out_dir`, otherwise the model of `train.start_from`, otherwise none.

        Raises:
            CheckpointError: the checkpoint was made with another recipe, or `resume` is False and
                there is one; or the model does not exist, differs from the one that an adapter was started
                on, or has another decoder than the recipe.
            RecipeError: a part is to be trained, but no model is named.
        """
        model = recipe.train.start_from
        recipe.check_start()
        own = latest_checkpoint(out_dir)
        if own is not None:
            if not resume:
                raise CheckpointError(
                    str(out_dir),
                    f"already contains a run (step {read_state(own).step})",
                    "name another folder, or resume",
                )
            check_recipe(own, read_recipe(own, registry, trust_endpoints=trust_endpoints), recipe)
            state = read_state(own)
            # the user's own recipe names the base
            named = [target_of(model)] if model is not None else []
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
        """Earlier steps, seconds and tokens; zero unless resumed."""
        return self.state if self.resumed and self.state is not None else CheckpointState(step=0)

    def num_streams(self, recipe: Recipe, processes: Processes) -> int:
        """Number of virtual loaders: that with which the run started.

        Raises:
            RecipeError: the processes can't share the number that the recipe gives.
            CheckpointError: the run started with another number.
        """
        given = recipe.data.num_streams
        if not self.resumed or self.state is None:
            return streams_of_new_run(given, processes.world_size)
        started = BatchLoader.streams_of(self.state.loader)
        if given not in (None, started):
            raise CheckpointError(
                str(self.folder),
                f"was trained with data.num_streams={started}, and it is {given} now",
                f"resume with data.num_streams={started} or null, or start in another folder (-o)",
            )
        return started

    def explained(self, error: CM3Error, recipe: Recipe, registry: Registry) -> CM3Error | None:
        """A better error than the one from building the components, if the model's files were written by another
        tokenizer than the recipe's; None: none."""
        if self.folder is None or self.resumed or not error.place.startswith(str(self.folder)):
            return None
        return another_tokenizer(self.folder, read_recipe(self.folder, registry), recipe)

    def check_components(self, components: Components) -> None:
        """Raise `CheckpointError` if ids have another meaning than in the checkpoint."""
        if self.folder is not None and self.state is not None:
            check_fingerprints(self.folder, self.state, components)

    def check_data(self, preparation: Preparation) -> None:
        """Raise `CheckpointError` if a run would resume with other documents."""
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
        """Restore optimiser, random generators and loader to the point where the run stopped."""
        if not self.resumed or self.folder is None or self.state is None:
            return
        if any(is_divided(parameter) for parameter in optimizer.parameters):
            tensors, generators = read_divided_state(self.folder, optimizer.empty_state)
        else:
            tensors, generators = read_training_state(self.folder)
        if self.state.step > 0 and not tensors and optimizer.parameters:
            raise CheckpointError(
                str(self.folder / OPTIMIZER),
                f"contains no optimiser state, after {self.state.step} steps",
                "use an older checkpoint, or copy it again from its source",
            )
        optimizer.load_state_tensors(tensors)
        restore_generators(generators)
        loader.load_state_dict(self.state.loader)

    def in_words(self, out_dir: Path) -> str:
        """The text for the line printed at the start of a run."""
        if self.resumed:
            return f"resumes from {self.folder}"
        weights = "" if self.folder is None else f" from the weights of {self.folder}"
        return f"starts in {out_dir}{weights}"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is started; `train` describes them."""

    resume: bool = True
    progress: bool = True
    device: str | torch.device | None = None
    processes: Processes = field(default_factory=Processes)
    shard: int | None = None
    trust_endpoints: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class _Place:
    """A run's device, the precision of its products (None: float32) with the reason, and how processes
    share the decoder."""

    device: torch.device
    dtype: torch.dtype | None
    reason: str
    parallel: OneProcess

    @classmethod
    def chosen(cls, recipe: Recipe, registry: Registry, options: RunOptions) -> _Place:
        """Choose them, checking that all processes agree and that the memory is sufficient."""
        processes, shard = options.processes, options.shard
        device = choose_device(options.device)
        if recipe.attention is not None:
            recipe.attention.check_training(device.type)
        dtype, reason = choose_precision(recipe.train.precision, device)
        processes.check_same(
            {"precision": "fp32" if dtype is None else "bf16"},
            "set train.precision to fp32 or bf16: auto depends on each machine",
        )
        processes.check_same(
            {"--shard": "not given" if shard is None else str(shard)},
            "start all with the same --shard",
        )
        machine, on_cpu = device_memory(device)
        if on_cpu:
            machine = machine.shared(processes.num_local)
        parallel = parallel_of(recipe, processes, device, dtype, machine, shard)
        warning = check_training_fits(
            recipe,
            machine,
            on_cpu=on_cpu,
            bf16=dtype is not None,
            devices=parallel.num_shards,
            registry=registry,
        )
        if warning is not None:
            print(f"warning: {warning}", file=sys.stderr)
        return cls(device, dtype, reason, parallel)


def start(
    recipe: Recipe, out_dir: Path, registry: Registry, options: RunOptions | None = None
) -> TrainState:
    """Build everything, and restore the state of the run's `Origin`. Arguments as for `train`."""
    options = RunOptions() if options is None else options
    schedule, processes = Schedule.of(recipe.train), options.processes
    trackers = trackers_of(recipe, registry) if processes.is_first else []
    micro_batches(recipe.train.batch_rows, recipe.train.accumulate, processes.world_size)
    OutputFolder(out_dir, resumes=True)
    check_links(out_dir)
    # all have looked at the folder before one can be refused, and remove it
    processes.check_same({**plugin_versions(registry.plugins), "recipe": recipe.hash})
    origin = Origin.find(
        recipe, out_dir, registry, resume=options.resume, trust_endpoints=options.trust_endpoints
    )
    num_streams = origin.num_streams(recipe, processes)
    base = {f"base {name}": value for name, value in origin.base.items()}
    processes.check_same({"checkpoint": str(origin.folder), **base})
    place = _Place.chosen(recipe, registry, options)
    preparation = _prepared(recipe, out_dir, registry, origin, place, options)
    components, done = preparation.components, origin.counters
    optimizer = _placed(components, origin, place)
    loader = preparation.loader(processes, num_streams)
    torch.manual_seed(recipe.train.seed)
    origin.restore(optimizer, loader)
    if (own_seed := processes.seed(recipe.train.seed, done.step)) is not None:
        torch.manual_seed(own_seed)
    finished = origin.resumed and schedule.progress(done.step, done.elapsed_s) >= 1
    processes.first(lambda: _write_description(preparation, out_dir, finished=finished))
    if options.progress:
        if (note := note_on_streams(num_streams, processes.world_size)) is not None:
            print(note, file=sys.stderr)
        words = place.parallel.in_words(processes)
        _tell(components, optimizer, place, origin.in_words(out_dir), words)
    first, source = processes.is_first, components.source
    sums_G2 = _loss_sums(done, place.device, len(GROUPS) * max(1, len(source.parts)))
    return TrainState(
        recipe,
        out_dir,
        components,
        preparation,
        components.decoder.module,
        optimizer,
        schedule,
        AheadLoader(loader),
        MetricsLog(out_dir, done.step) if first else NoLog(),
        place.device,
        place.dtype,
        processes,
        place.parallel,
        words_of_training(source, origin.folder) if first else None,
        done.step,
        done.elapsed_s,
        done.tokens,
        base=origin.base,
        trackers=Tracking(trackers, place.device),
        # sums over all processes, computed when they are logged
        sums_G2=sums_G2 if first else torch.zeros_like(sums_G2),
    )


def _trains_codes(recipe: Recipe) -> bool:
    """Whether the image tokenizer is to be trained first: it has no weights, but minutes."""
    tokenizer = recipe.image_tokenizer
    minutes = getattr(tokenizer, "train_minutes", None)
    return minutes is not None and getattr(tokenizer, "weights", "") is None


def _prepared(
    recipe: Recipe,
    out_dir: Path,
    registry: Registry,
    origin: Origin,
    place: _Place,
    options: RunOptions,
) -> Preparation:
    """The components, and the data prepared with them; the same in all processes."""
    processes, codes = options.processes, origin.image_tokenizer_folder
    with processes.in_turn():  # the first process fills the caches
        if codes is None and _trains_codes(recipe):
            from cm3run.training.own_codes import trained_codes

            codes = trained_codes(recipe, out_dir, registry, progress=options.progress)
        try:
            components = build(
                recipe,
                registry,
                stage="train",
                stored=Stored(
                    text_tokenizer=origin.tokenizer_folder,
                    image_tokenizer=codes,
                ),
                device=place.device,
                decoder_device=place.parallel.build_device(place.device),
            )
        except CM3Error as error:
            if (better := origin.explained(error, recipe, registry)) is not None:
                raise better from error
            raise
        origin.check_components(components)
        check_licences(components.source, recipe.train.licences)
        if options.progress and processes.is_first and not origin.resumed:
            # before all pictures are encoded, which may take hours
            for note in _notes(components, origin.folder):
                print(note, file=sys.stderr)
        preparation = Preparation(components, progress=options.progress)
    origin.check_data(preparation)
    processes.check_same({**components.fingerprints(), "data set": preparation.fingerprint})
    return preparation


def _compiles(device: torch.device) -> bool:
    """Whether torch can compile for the device; says so if a CPU lacks a compiler."""
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if device.type != "cpu" or shutil.which(compiler) is not None:
        return True
    print(
        f"note: nothing is compiled (train.compile): there is no C++ compiler {compiler!r}; next: install it (g++), "
        "or train more slowly",
        file=sys.stderr,
    )
    return False


def _placed(components: Components, origin: Origin, place: _Place) -> OptimizerGroup:
    """Put the decoder, with the origin's weights, on its device. Returns the optimiser for its trained parameters."""
    recipe, decoder = components.recipe, components.decoder.module
    decoder.train()
    drawn_on = place.parallel.build_device(place.device)
    if recipe.train.start_from_codebook and origin.folder is None and drawn_on.type != "meta":
        _start_from_codebook(components, drawn_on)
    compiled = recipe.train.compile and _compiles(place.device)
    if compiled and place.device.type == "cpu":
        # Documents are attended to one by one on the CPU, which compiled code can't: it attends to whole rows.
        attention = components.attention
        attention.attend = torch.compiler.disable(attention.attend)  # type: ignore[method-assign]  # of this one alone
    place.parallel.place(components.decoder, place.device, compiled=compiled)
    origin.set_weights(decoder)
    rows = select_parameters(
        components.decoder, recipe.tune, components.vocabulary, seed=recipe.train.seed
    )
    origin.set_adapters(decoder)
    dtype = place.dtype or torch.float32
    return OptimizerGroup(components.decoder, recipe.train, dtype, rows=rows)


def _tell(
    components: Components, optimizer: OptimizerGroup, place: _Place, begun: str, shared: str
) -> None:
    """Print the run's model, data and device."""
    parameters = sum(p.numel() for p in components.decoder.module.parameters())
    trained = sum(p.numel() for p in optimizer.parameters)
    part = "" if trained == parameters else f", {trained:,} of them trained"
    num_threads = torch.get_num_threads()
    print(
        f"{components.recipe.name} {begun}: {parameters / 1e6:.2f}M parameters"
        f"{part}, {len(components.source):,} documents, {place.device}, "
        f"{place.reason}, {num_threads} thread{'' if num_threads == 1 else 's'}{shared}",
        file=sys.stderr,
    )


def _notes(components: Components, base: Path | None) -> list[str]:
    """What the user should know before the first step.

    `base`: the model that is tuned; None: a new one."""
    known = None
    if base is not None:
        with suppress(CheckpointError):  # the file is damaged, but training does not need it
            known = TrainingWords.read(base)
    source = components.source
    codes = note_on_codes(source, components.image_tokenizer)
    words = note_on_words(source, known)
    found = [("warning", codes), ("note", words)]
    return [f"{kind}: {text}" for kind, text in found if text is not None]


def _write_description(preparation: Preparation, out_dir: Path, *, finished: bool) -> None:
    """Write the run's description files, and remove what killed runs left.

    `finished`: nothing will be trained, so the existing description stays."""
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
    """Sums since the last metrics record, float32 [G, 2]; zero if none are stored."""
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
    """Initialise the decoder with the image tokenizer's codebook vectors, if it has any."""
    codebook = components.image_tokenizer.codebook()
    if codebook is not None:
        components.decoder.start_from_codebook(codebook.to(device), components.vocabulary)
