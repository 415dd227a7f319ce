"""A step of generation captured once and replayed (a CUDA graph): at small batches launching
kernels takes longer than they do.

What a step reads and writes stays in the same tensors: hidden states, positions, weights, cells,
lengths. Whenever requests join or leave it is captured again. Legend: n requests, S stream rows, G
guidance streams, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import KVCache

#: Captures what a function does and returns what does it again, with whatever the same tensors hold
#: then.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

#: Steps of a run from which capturing pays: it costs about three of them.
FEWEST_STEPS = 8


class CapturedStep:
    """The step of a batch whose requests are one group.

    Args:
        draw: (hidden [S, E], weights [n, G], position [n]) -> (tokens [n], log-probability [n]).
        read: (tokens [n], cells [S, 1]) -> hidden [S, E] after the tokens, which are written to the
            cache and not counted.
        cache: counts what was written.
        hidden_SE, weights_nG, position_n, cells_S1: of the first step; only their shapes matter.
        capture: `cuda_graph`.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        read: Callable[[Tensor, Tensor], Tensor],
        cache: KVCache,
        hidden_SE: Tensor,
        weights_nG: Tensor,
        position_n: Tensor,
        cells_S1: Tensor,
        capture: Capture,
    ) -> None:
        self.cache = cache
        self.hidden_SE, self.weights_nG = hidden_SE.clone(), weights_nG.clone()
        self.position_n, self.cells_S1 = position_n.clone(), cells_S1.clone()
        self.tokens_n, self.log_n = (
            torch.empty_like(position_n),
            torch.zeros(len(position_n), dtype=torch.float64, device=position_n.device),
        )

        def step() -> None:
            tokens_n, log_n = draw(self.hidden_SE, self.weights_nG, self.position_n)
            self.tokens_n.copy_(tokens_n)
            self.log_n.copy_(log_n)
            self.hidden_SE.copy_(read(tokens_n, self.cells_S1))
            cache.count_on_device()

        lengths_B = cache.length_B.clone()
        self._replay = capture(step)
        cache.length_B.copy_(lengths_B)  # capturing ran it

    def __call__(
        self, hidden_SE: Tensor | None, weights_nG: Tensor, position_n: Tensor, cells_S1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step; hidden states of the step before where they are None. Tokens and
        log-probabilities are copies."""
        if hidden_SE is not None:
            self.hidden_SE.copy_(hidden_SE)
        self.weights_nG.copy_(weights_nG)
        self.position_n.copy_(position_n)
        self.cells_S1.copy_(cells_S1)
        self._replay()
        self.cache.count_on_host()
        return self.tokens_n.clone(), self.log_n.clone()


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Warm up on a stream of its own, as capturing demands, then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
