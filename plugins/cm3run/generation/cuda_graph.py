"""A step of generation captured once and replayed (a CUDA graph).

At small batches, launching kernels takes longer than running them. A step always reads and writes
the same tensors: hidden states, positions, weights, cells, lengths. Whenever requests join or leave,
it is captured again. Legend: n requests, S stream rows, G
guidance streams, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import KVCache

#: Captures a function's work and returns a function that repeats it on the tensors' current contents.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

#: Fewest steps of a run for which capturing pays off: it costs about three steps.
FEWEST_STEPS = 8


class CapturedStep:
    """The step of a batch whose requests form one group.

    Args:
        draw: (hidden [S, E], weights [n, G], position [n]) -> (tokens [n], log-probability [n]).
        read: (tokens [n], cells [S, 1]) -> hidden [S, E] after the tokens, which are written to the
            cache but not counted.
        cache: counts the tokens written.
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
        """One step; returns copies of tokens and log-probabilities.

        `hidden_SE` None: continue from the hidden states of the previous step.
        """
        if hidden_SE is not None:
            self.hidden_SE.copy_(hidden_SE)
        self.weights_nG.copy_(weights_nG)
        self.position_n.copy_(position_n)
        self.cells_S1.copy_(cells_S1)
        self._replay()
        self.cache.count_on_host()
        return self.tokens_n.clone(), self.log_n.clone()


def cuda_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Warm up on a separate stream, as capturing requires, then capture.

    Args:
        step: launches on `device` alone.
        device: the decoder's. Streams and graphs belong to the current device, which may be another:
            a graph captured there would be empty.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads (a data loader, a server) may use the device meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
