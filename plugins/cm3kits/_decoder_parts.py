"""What all laws of decoders need: a built decoder, tokens, cells and comparisons.

Legend: B rows, T tokens, E model dimension.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, InferenceDecoder, KVCache
from cm3core.vocab import Vocabulary
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import same
from cm3kits.attention import DenseAttention
from cm3kits.samples import make_vocabulary


class DecoderParts(ConfigLaws[Decoder]):
    """Inputs of the laws of decoders; see `cm3kits.decoder`."""

    vocabulary: ClassVar[Vocabulary] = make_vocabulary(26, 16, 4, num_unused=6)
    grid: ClassVar[tuple[int, int]] = (4, 4)
    attention: ClassVar[AttentionBackend] = DenseAttention()
    tolerance: ClassVar[float] = 1e-9
    max_examples: ClassVar[int | None] = 8
    _trained: ClassVar[bool]

    def build(self, config: Any) -> Decoder:
        """Build for the kit's vocabulary, attention and grid, from a fixed seed.

        torch's global generator is not changed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            decoder: Decoder = config.build(self.vocabulary, self.attention, self.grid)
        return decoder

    @property
    def decoder(self) -> Decoder:
        """The subject in float64 and evaluation mode, with noise added to every parameter.

        Created once per test class.
        """
        subject = self.subject
        if "_trained" not in type(self).__dict__:
            module = subject.module
            module.double().eval()
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(
                        0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    )
            type(self)._trained = True
        return subject

    def tokens(self, data: st.DataObject, B: int, T: int) -> Tensor:
        """Draw random ids [B, T]."""
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="tokens"))
        return torch.randint(0, self.vocabulary.size, (B, T), generator=generator)

    def cells(self, tokens_BT: Tensor) -> Tensor:
        """Return a cell for each image code, with a position if the decoder takes any; -1 elsewhere."""
        code_BT = tokens_BT - self.vocabulary.image.start
        is_code_BT = (code_BT >= 0) & (code_BT < self.vocabulary.num_image)
        axes = {} if self.config is None else self.config.position_axes()
        position_BT = code_BT * 11 % prod(axes.values())
        number = self.grid[0] * self.grid[1]
        return torch.where(is_code_BT, (code_BT * 7 + 3) % number + number * position_BT, -1)

    def arranged(self) -> tuple[InferenceDecoder, KVCache]:
        """Return the decoder for inference, with an empty cache of two rows of 8 tokens."""
        decoder = self.decoder.for_inference()
        return decoder, decoder.allocate_cache(2, 8)

    def read(self, decoder: InferenceDecoder, cache: KVCache, tokens_BT: Tensor) -> Tensor:
        """Read tokens into a cache, without counting them."""
        return decoder.hidden_states(tokens_BT, cells_BT=self.cells(tokens_BT), cache=cache)

    def assert_close(
        self, actual: Tensor, expected: Tensor, did: str = "computed states in two ways"
    ) -> None:
        """Raise unless they are equal up to the rounding of float64 sums."""
        same(actual, expected, did, tolerance=self.tolerance)

    def plain(self, tokens_BT: Tensor) -> Tensor:
        """Compute hidden states without cache or packing."""
        return self.decoder.hidden_states(tokens_BT, cells_BT=self.cells(tokens_BT))
