"""The parts of one engine step, and the lower bound of each (`cm3 bench decode --parts`).

Each part is timed separately in the middle of a picture, with the shapes of a step. The lower bounds are the bytes that
must be read, divided by the speed at which a sum reads a tensor larger than any cache; and the operations of the
products, divided by the throughput of the same products with `MANY_ROWS` rows, where arithmetic dominates.

Legend: n pictures, S = 2 n rows, E width, R image codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cm3lab.benchmarks.decode.engine import VARIANTS, EngineProvider
from cm3lab.benchmarks.decode.workload import PROMPT_TOKENS, decode_case, step_bytes

if TYPE_CHECKING:
    from cm3plugins.decoders.packed import PackedInference

#: Number of rows at which arithmetic dominates a product.
MANY_ROWS = 256
#: Runs of each part, of which the median is used.
RUNS = 15


@dataclass(frozen=True)
class Parts:
    """Times of one step, in milliseconds.

    Args:
        provider: name.
        batch: pictures.
        step: time per step of a whole picture, including the prompt's share.
        layers: all layers of a step, including attention.
        products: the layers' products alone.
        head: the head over the image codes.
        draw: guidance, filters and the draw.
        bytes_floor, operations_floor: lower bounds, see the module's docstring.
    """

    provider: str
    batch: int
    step: float
    layers: float
    products: float
    head: float
    draw: float
    bytes_floor: float
    operations_floor: float

    @property
    def attention(self) -> float:
        """Layers without their products: attention, norms, and the calls."""
        return max(0.0, self.layers - self.products)

    @property
    def rest(self) -> float:
        """Grammar, embeddings, book-keeping, and the prompt's share."""
        return max(0.0, self.step - self.layers - self.head - self.draw)


def parts_of(provider: EngineProvider, batch: int, tokens: int, read_bytes_per_s: float) -> Parts:
    """Time the parts of a step of one provider."""
    size, setup = provider.setup.size, provider.setup
    case = decode_case(setup, tokens, batch=batch)
    from cm3plugins.decoders.packed import PackedInference

    inference = provider.engine(tokens, batch).inference
    assert isinstance(inference, PackedInference)
    image, S = provider.model.vocabulary.image, 2 * batch
    draw_all = provider.prepare(case, {})
    provider.warm_up(case)
    with torch.inference_mode():
        cache = inference.allocate_cache(S, PROMPT_TOKENS + tokens)
        ids_ST = torch.full((S, PROMPT_TOKENS + tokens // 2), image.start, device=setup.device)
        inference.hidden_states(ids_ST, cache=cache)
        cache.advance([ids_ST.shape[1]] * S)
        new_S1 = ids_ST[:, :1]
        hidden_SE = inference.hidden_states(new_S1, cache=cache)[:, 0]
        products = products_like(inference, provider)
        rows, many = (
            {
                width: torch.randn(M, width, dtype=inference.dtype)
                for width in (size.width, size.d_ff)
            }
            for M in (S, MANY_ROWS)
        )

        def multiply(inputs: dict[int, Tensor]) -> None:
            for width, product in products:
                product(inputs[width])

        logits_SR = inference.logits(hidden_SE, image).float()
        layers = _ms(lambda: inference.hidden_states(new_S1, cache=cache))
        alone = _ms(lambda: multiply(rows))
        head = _ms(lambda: inference.logits(hidden_SE, image))
        draw = _ms(_drawing(provider, logits_SR, batch))
        rate = MANY_ROWS * size.trunk_parameters / _ms(lambda: multiply(many), runs=3)
    step = _ms(draw_all, runs=2) / tokens
    weights = size.trunk_parameters + size.num_codes * size.width
    return Parts(
        provider.name,
        batch,
        step,
        layers,
        alone,
        head,
        draw,
        step_bytes(size, case.parameters, tokens / 2, *provider.number_bytes)
        / read_bytes_per_s
        * 1e3,
        S * weights / rate,
    )


def products_like(
    inference: PackedInference, provider: EngineProvider
) -> list[tuple[int, Callable[[Tensor], Tensor]]]:
    """Return products with random weights, with the layers' shapes and arrangement, each with the width of its inputs.
    The weights are separate, since a layer's would be in a cache after the layer."""
    E, F = provider.setup.size.width, provider.setup.size.d_ff
    shapes = ((3 * E, E), (E, E), (F, E), (E, F))
    return [
        (shape[1], inference.product(torch.randn(shape)))
        for _ in range(provider.setup.size.num_layers)
        for shape in shapes
    ]


def _drawing(provider: EngineProvider, logits_SR: Tensor, batch: int) -> Callable[[], Tensor]:
    from cm3lab.benchmarks.decode.engine import sampler

    drawer = sampler()
    plan = drawer.plan("image")
    rows_nG = torch.arange(2 * batch).view(batch, 2)
    weights_nG = torch.tensor([[one.weight for one in plan.streams]]).expand(batch, 2).contiguous()
    zero_n = torch.zeros(batch, dtype=torch.int64)
    return lambda: drawer.draw(
        logits_SR,
        rows_nG,
        weights_nG,
        (plan,) * batch,
        first_id=0,
        allowed_nR=None,
        seed_n=zero_n,
        position_n=zero_n,
    )


def _ms(function: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median milliseconds of a call."""
    function()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return median(times) * 1e3


def table(parts: list[Parts], read_bytes_per_s: float) -> str:
    """Format the parts as a table."""
    lines = [
        f"a step in ms; lower bounds: bytes at {read_bytes_per_s / 1e9:.1f} GB/s, operations at the throughput of "
        f"products with {MANY_ROWS} rows",
        f"  {'provider':<12} {'batch':>5} {'bytes':>6} {'oper.':>6} | {'products':>8} {'attention':>9} "
        f"{'head':>6} {'draw':>6} {'rest':>6} | {'step':>6} {'tokens/s':>8}",
    ]
    lines += [
        f"  {one.provider:<12} {one.batch:>5} {one.bytes_floor:>6.2f} {one.operations_floor:>6.2f} | "
        f"{one.products:>8.2f} {one.attention:>9.2f} {one.head:>6.2f} {one.draw:>6.2f} "
        f"{one.rest:>6.2f} | {one.step:>6.2f} {one.batch * 1e3 / one.step:>8.1f}"
        for one in parts
    ]
    return "\n".join(lines)


def run_parts(
    providers: list[EngineProvider], batches: tuple[int, ...], tokens: int, read_bytes_per_s: float
) -> str:
    """Measure every provider with every batch; providers in `VARIANTS`' order."""
    order = list(VARIANTS)
    chosen = sorted(providers, key=lambda one: order.index(one.name))
    return table(
        [parts_of(one, batch, tokens, read_bytes_per_s) for batch in batches for one in chosen],
        read_bytes_per_s,
    )
