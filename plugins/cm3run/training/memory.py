"""Estimating the memory that training a recipe needs, and refusing recipes that exceed the machine's. No torch.

docs/recipes.md compares the estimate with measurements.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.errors import RecipeError
from cm3core.interfaces.decoder import TrainingMemory, TrainingPass
from cm3core.recipe.recipe import Recipe, available, default_layout
from cm3core.vocab import Vocabulary, VocabularySizes
from cm3run.machine_memory import VARIABLE, MachineMemory

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry

#: Resident bytes of Python, torch, the plugins, a data set of some thousand documents and an image
#: tokenizer on the CPU, measured.
PROGRAM = 480 << 20
#: Memory of oneDNN in addition, if a CPU multiplies bfloat16: kernels for each length of document.
BF16_KERNELS = 400 << 20
#: Address space of a process with torch that is never used.
UNTOUCHED = 4 << 30
_FLOAT = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of training, in bytes.

    Args:
        program: everything except the decoder's training, on the host; includes the copies for
            `train.save_in_background`.
        weights, gradients, optimizer: of the decoder; the optimiser's includes its temporaries.
        activations: those kept by a forward pass, and its largest temporaries.
        decoder: the decoder's own estimate; None: unknown, and activations are not included.
    """

    program: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    decoder: TrainingMemory | None = None

    def total(self, *, on_cpu: bool = True) -> int:
        """The total, or the part on a GPU."""
        model = self.weights + self.gradients + self.optimizer + self.activations
        return model + (self.program if on_cpu else 0)

    def in_words(self) -> str:
        """The estimate in words."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "program and data": self.program,
        }
        shown = ", ".join(f"{name} {_gb(value)}" for name, value in parts.items())
        missing = "" if self.decoder is not None else "; this decoder's activations are unknown"
        return f"{_gb(self.total())} GB ({shown}{missing})"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f}" if num_bytes < 100e9 else f"{num_bytes / 1e9:,.0f}"


def training_memory(
    recipe: Recipe,
    *,
    bf16: bool | None = None,
    on_cpu: bool = True,
    devices: int = 1,
    registry: Registry | None = None,
) -> MemoryEstimate | None:
    """Estimate the memory for a recipe; None if it has no decoder or image tokenizer, or its decoder doesn't
    report its number of parameters.

    Args:
        recipe: checked.
        bf16: whether products use bfloat16; None: as `train.precision` says, with "auto" as no.
        on_cpu: on a CPU; otherwise on a CUDA device.
        devices: number of devices that share weights, gradients and optimiser state equally, gathering a block's
            weights for its products (like FSDP2); the estimate is for one of
            them.
        registry: the installed plugins, one of which has the default layout. None: discover them.
    """
    if recipe.decoder is None or recipe.image_tokenizer is None:
        return None
    section = recipe.train
    bf16 = section.precision == "bf16" if bf16 is None else bf16
    vocabulary, grid = _vocabulary(recipe, registry), recipe.image_tokenizer.grid
    if (number := recipe.decoder.num_parameters(vocabulary, grid)) is None:
        return None
    one_pass = TrainingPass(
        rows=section.batch_rows,
        length=recipe.decoder.context_length,
        itemsize=2 if bf16 else 4,
        attention=recipe.attention,
        device="cpu" if on_cpu else "cuda",
    )
    known = recipe.decoder.training_memory(vocabulary, grid, one_pass)
    matrices, others, stack = _trained(recipe, known, number)
    trained = matrices + others
    if known is not None and recipe.tune.adapts:
        number += matrices
    muon = known is not None and section.optimizer == "muon"
    # AdamW keeps two values per parameter, Muon one per matrix element
    optimizer = _FLOAT * (matrices + 2 * others if muon else 2 * trained)
    # the stacked momenta with Nesterov's step, and three more tensors of their size
    temporaries = 5 * _FLOAT * stack if muon else 0
    activations = 0 if known is None else known.activations + known.working
    gathered = known.gathered if known is not None and known.gathered else number
    activations += _copies(number, gathered, bf16=bf16, divided=devices > 1)
    share = -(-number // devices)
    copied = 0
    if section.save_in_background:
        stored = trained if recipe.tune.adapts else number
        copied = -(-(_FLOAT * stored + optimizer) // devices)
    return MemoryEstimate(
        PROGRAM + copied + (BF16_KERNELS if bf16 and on_cpu else 0),
        _FLOAT * share,
        _FLOAT * -(-trained // devices),
        -(-optimizer // devices) + max(0, temporaries - activations),
        activations,
        known,
    )


def _copies(number: int, gathered: int, *, bf16: bool, divided: bool) -> int:
    """Bytes of the copies of weights for a pass."""
    if divided:
        # temporarily whole, with their gradients and the float32 copy for the sum of gradients; with
        # bf16 products, blocks take 2 + 2 + 4 bytes, and the embedding, in float32, 12
        return gathered * (10 if bf16 else 3 * _FLOAT)
    return 2 * number if bf16 else 0


def _vocabulary(recipe: Recipe, registry: Registry | None) -> Vocabulary:
    """A vocabulary of the size that the recipe's will have."""
    tokenizer, sizes = recipe.image_tokenizer, recipe.vocabulary
    assert tokenizer is not None
    text = recipe.text_tokenizer.max_vocab_size if recipe.text_tokenizer is not None else None
    given = VocabularySizes(
        text or 0,
        tokenizer.codebook_size,
        sizes.num_text,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
    )
    layout = available(recipe.layout) or default_layout(registry)
    codes = range(1, 1 + tokenizer.codebook_size)
    # a layout of unknown size has the text tokenizer's ids, which include those of image codes
    rows = layout.num_ids(given) or text or 0
    return Vocabulary(max(rows, codes.stop), (), codes, {"pad": 0})


def _trained(recipe: Recipe, known: TrainingMemory | None, number: int) -> tuple[int, int, int]:
    """Upper bounds on the trained parameters of matrices, of the rest, and of Muon's largest stack."""
    if known is None:
        return 0, number, 0
    if recipe.tune.adapts and known.linear_features:
        adapters = recipe.tune.rank * known.linear_features
        return adapters, known.other_parameters if recipe.tune.parameters else 0, adapters
    if recipe.tune.method in ("head", "embeddings"):
        return 0, known.other_parameters, 0
    return known.matrix_parameters, known.other_parameters, known.largest_stack


def check_training_fits(
    recipe: Recipe,
    machine: MachineMemory,
    *,
    on_cpu: bool = True,
    bf16: bool | None = None,
    devices: int = 1,
    registry: Registry | None = None,
) -> str | None:
    """Refuse a recipe whose training exceeds the memory of one of the `devices` that share it.

    Returns:
        a warning if it would need swap, or memory that other processes are using.

    Raises:
        RecipeError: it never fits; states the estimate, the limit and the keys that reduce it.
    """
    estimate = training_memory(recipe, bf16=bf16, on_cpu=on_cpu, devices=devices, registry=registry)
    if estimate is None or machine.limit is None:
        return None
    needed, limit = estimate.total(on_cpu=on_cpu), machine.limit
    if on_cpu and machine.source.startswith("the limit on address space"):
        limit -= min(UNTOUCHED, resource.getrlimit(resource.RLIMIT_AS)[0])
    has = f"{machine.source} has {machine.limit / 1e9:,.2f} GB"
    if needed > limit + machine.swap:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"training takes about {estimate.in_words()}, but {has}",
            f"{advice(recipe, estimate)}; or set {VARIABLE} to the number of GB of the machine that "
            "will train it",
        )
    if needed > limit:
        return (
            f"training takes about {estimate.in_words()}, but {has}: it will swap, and be slow; "
            + advice(recipe, estimate)
        )
    if on_cpu and machine.free is not None and needed > machine.free + machine.swap:
        return (
            f"training takes about {estimate.in_words()}; only {_gb(machine.free)} GB are free now, because "
            "other processes use the rest"
        )
    return None


def advice(recipe: Recipe, estimate: MemoryEstimate) -> str:
    """The keys that reduce the largest part of the estimate."""
    known = estimate.decoder
    model = estimate.weights + estimate.gradients + estimate.optimizer
    if known is None or model > estimate.activations:
        keys = [] if known is None else list(known.smaller_model)
        muon = ["train.optimizer=muon"] if recipe.train.optimizer != "muon" else []
        return f"lower {', '.join([*keys, 'the sizes in vocabulary'])}" + "".join(
            f", or use {one}" for one in muon
        )
    rows = recipe.train.batch_rows
    fewer = (
        [f"train.batch_rows (now {rows:,}; train.accumulate makes up for it)"] if rows > 1 else []
    )
    lower = [*fewer, *(one for one in known.smaller if "=" not in one)]
    settings = [one for one in known.smaller if "=" in one]
    return f"lower {' or '.join(lower)}" + "".join(f", or use {one}" for one in settings)
