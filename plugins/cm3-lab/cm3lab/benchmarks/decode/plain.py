"""A plain loop over a preallocated cache, with the weights of our own decoder: what an afternoon's code
reaches, and what an engine has to beat.

Query, key and value in one product, `F.linear` and SDPA in one dtype, both streams in one batch, the
head over the codes only, top-k and top-p by a sort, `multinomial`. The unconditional stream is the
prompt with its text replaced by padding, so that all rows are equally long.

Legend: n pictures, P prompt tokens, S = 2 n rows (all conditional ones first), T new tokens of a row, R
image codes, H heads, D head dimension, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.interfaces.benchmark import Case, DecodeProvider, Inputs, Verdict, Where
from cm3lab.benchmarks.decode.engine import (
    GATE_BATCH,
    GATE_TOKENS,
    ROUNDING,
    RandomModel,
    requests_of,
)
from cm3lab.benchmarks.decode.workload import Setup, code_drawer, decode_case
from cm3lab.benchmarks.ops.guided_sample import GUIDANCE
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder


class PlainLoop(DecodeProvider):
    """The loop; see the module's docstring.

    Args:
        setup: what providers have in common.
        model: whose decoder's weights are used.
        dtype: of weights, cache and products.
        name: the provider's.
    """

    def __init__(self, setup: Setup, model: RandomModel, dtype: torch.dtype, name: str) -> None:
        super().__init__(setup)
        self.model, self.dtype, self.name = model, dtype, name

    def enabled(self, case: Case, where: Where) -> str | None:
        return None

    @property
    def number_bytes(self) -> tuple[float, float]:
        return self.dtype.itemsize, self.dtype.itemsize

    @property
    def trunk_parameters(self) -> int:
        return sum(weight.numel() for layer in self.layers for weight in layer)

    @cached_property
    def decoder(self) -> CM3LeonDecoder:
        """Its weights as they were trained."""
        decoder = self.model.decoder
        assert isinstance(decoder, CM3LeonDecoder)
        return decoder

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each layer q, k and v together; out, up, down."""
        return [
            (
                torch.cat(
                    [one.weight.detach() for one in (block.q_proj, block.k_proj, block.v_proj)]
                ).to(self.dtype),
                block.out_proj.weight.detach().to(self.dtype),
                block.fc1.weight.detach().to(self.dtype),
                block.fc2.weight.detach().to(self.dtype),
            )
            for block in self.decoder.blocks()
        ]

    @cached_property
    def head_RE(self) -> Tensor:
        """The head's rows of image codes."""
        image = self.model.vocabulary.image
        return self.decoder.head_weight().detach()[image.start : image.stop].to(self.dtype)

    def prompts(self, case: Case) -> Tensor:
        """Ids of both streams, int64 [S, P]."""
        serializer = self.model.serializer(case.parameters["tokens"])
        ids_nP = torch.stack(
            [
                torch.from_numpy(serializer.prompt(request.document).tokens).long()
                for request in requests_of(case)
            ]
        )
        text, pad = self.model.vocabulary.text, self.model.vocabulary.pad
        hidden_nP = (ids_nP >= text.start) & (ids_nP < text.stop)
        return torch.cat([ids_nP, ids_nP.masked_fill(hidden_nP, pad)])

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        ids_SP, tokens = self.prompts(case), case.parameters["tokens"]
        return lambda: self.draw(ids_SP, tokens)

    @torch.inference_mode()
    def draw(self, ids_SP: Tensor, tokens: int, *, greedy: bool = False) -> Tensor:
        """Codes, int64 [n, tokens] on the CPU."""
        size, device = self.setup.size, self.setup.device
        S, P = ids_SP.shape
        n, D = S // 2, size.width // size.num_heads
        shape = (size.num_layers, S, size.num_heads, P + tokens, D)
        cache = tuple(torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2))
        draw = code_drawer(n, device)
        first, codes = self.model.vocabulary.image.start, []
        new_ST, length = ids_SP.to(device), 0
        for _ in range(tokens):
            hidden_SE = self.forward(new_ST, length, cache)
            length += new_ST.shape[1]
            logits_SR = F.linear(hidden_SE.to(self.dtype), self.head_RE)
            if greedy:
                mixed = logits_SR.float()
                code_n1 = (GUIDANCE * mixed[:n] + (1 - GUIDANCE) * mixed[n:]).argmax(1)[:, None]
            else:
                code_n1 = draw(logits_SR)
            codes.append(code_n1)
            new_ST = (first + code_n1).repeat(2, 1)
        return torch.cat(codes, dim=1).cpu()

    def forward(self, ids_ST: Tensor, length: int, cache: tuple[Tensor, ...]) -> Tensor:
        """Hidden states [S, E] of the last of some new tokens behind `length` others."""
        S, T = ids_ST.shape
        heads = self.setup.size.num_heads
        positions = torch.arange(length, length + T, device=ids_ST.device)[None]
        x_STE = self.decoder.embed(ids_ST, positions.expand(S, T), None).to(self.dtype)
        for number, (qkv, out, up, down) in enumerate(self.layers):
            three = F.linear(_normed(x_STE), qkv).view(S, T, 3, heads, -1)
            q, k, v = three.permute(2, 0, 3, 1, 4)
            keys, values = (memory[number] for memory in cache)
            keys[:, :, length : length + T], values[:, :, length : length + T] = k, v
            seen = F.scaled_dot_product_attention(
                q, keys[:, :, : length + T], values[:, :, : length + T], is_causal=length == 0
            )
            x_STE = x_STE + F.linear(seen.transpose(1, 2).reshape(S, T, -1), out)
            x_STE = x_STE + F.linear(self.activation(F.linear(_normed(x_STE), up)), down)
        return _normed(x_STE[:, -1])

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        function: Callable[[Tensor], Tensor] = getattr(F, self.decoder.config.activation)
        return function

    @torch.inference_mode()
    def verify(self) -> Verdict:
        """Greedy codes, each judged by the decoder itself, without a cache."""
        case = decode_case(self.setup, GATE_TOKENS, batch=GATE_BATCH)
        ids_SP, image = self.prompts(case), self.model.vocabulary.image
        drawn_nT = self.draw(ids_SP, GATE_TOKENS, greedy=True)
        read = torch.cat([ids_SP, (drawn_nT[:, :-1] + image.start).repeat(2, 1)], dim=1)
        hidden = self.decoder.hidden_states(read.to(self.setup.device))[:, ids_SP.shape[1] - 1 :]
        streams = self.decoder.logits(hidden, image)
        mixed_nTR = (
            GUIDANCE * streams[:GATE_BATCH] + (1 - GUIDANCE) * streams[GATE_BATCH:]
        ).float()
        chosen_nT = mixed_nTR.gather(2, drawn_nT[..., None].to(mixed_nTR.device))[..., 0]
        behind = mixed_nTR.amax(2) - chosen_nT > ROUNDING[self.dtype] * mixed_nTR.std(2)
        return Verdict(
            int(behind.sum()),
            0,
            f"of {drawn_nT.numel()} greedy tokens differ from a recomputation without a cache",
        )


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def plain_loops(setup: Setup, model: RandomModel) -> list[PlainLoop]:
    """In the run's dtype, and in bfloat16 where that is another."""
    dtypes = {"plain": setup.dtype, "plain-bf16": torch.bfloat16}
    if setup.dtype == torch.bfloat16:
        dtypes.pop("plain-bf16")
    return [PlainLoop(setup, model, dtype, name) for name, dtype in dtypes.items()]
