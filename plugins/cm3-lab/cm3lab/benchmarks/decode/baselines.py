"""Baselines of the engine, with random weights: a plain loop over the weights of our own decoder, and common
implementations whose layers have as many parameters as ours.

The plain loop is code that can be written in an afternoon, which an engine has to beat: query, key and value in one
product, `F.linear` and SDPA in one dtype, over a preallocated cache; the head only over the codes; top-k and top-p by
sorting, `multinomial`. The others are transformers' Janus, and LlamaGen's loop on transformers' Llama, with keys and
values in `StaticCache`, whose attention reads its whole length at every step. transformers is imported on demand.

All run the unconditional stream as the second half of the batch, with the same prompt whose text is replaced by padding,
so that all rows have the same length.

Legend: n pictures, P prompt tokens, S = 2 n rows (all conditional ones first), T new tokens per row, R image codes, H
heads, D head dimension, E, W width.
"""

from __future__ import annotations

import importlib.util
import inspect
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3lab.benchmarks.decode.engine import (
    GATE_BATCH,
    GATE_TOKENS,
    ROUNDING,
    RandomModel,
    requests_of,
)
from cm3lab.benchmarks.decode.workload import (
    PROMPT_TOKENS,
    SEED,
    Setup,
    code_drawer,
    decode_case,
    prompts_of,
)
from cm3lab.benchmarks.kernels.ops.guided_sample import GUIDANCE, TOP_K, TOP_P
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3run.benchmarks import (
    Case,
    DecodeProvider,
    Inputs,
    Verdict,
    Where,
    compiling_refusal,
)


class PlainLoop(DecodeProvider):
    """The loop; see the module's docstring.

    Args:
        setup: settings shared by all providers.
        model: model whose decoder weights are used.
        dtype: dtype of weights, cache and products.
        name: name of the provider.
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
        """The decoder, with its weights."""
        decoder = self.model.decoder
        assert isinstance(decoder, CM3LeonDecoder)
        return decoder

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The weights of each layer: q, k and v together; out, up, down."""
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
        """Return the ids of both streams, int64 [S, P]."""
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
        """Return codes, int64 [n, tokens] on the CPU."""
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
        """Return the hidden states [S, E] of the last of several new tokens after `length` others."""
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
        """Check greedy codes, one by one, with the decoder itself, without a cache."""
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
    """Return the loop in the run's dtype and, if that differs, in bfloat16."""
    dtypes = {"plain": setup.dtype, "plain-bf16": torch.bfloat16}
    if setup.dtype == torch.bfloat16:
        dtypes.pop("plain-bf16")
    return [PlainLoop(setup, model, dtype, name) for name, dtype in dtypes.items()]


#: Ids of the text vocabulary: specials, then bytes.
BOS, PAD, EOS, BEGIN_OF_IMAGE, FIRST_BYTE = range(5)
NUM_TEXT = FIRST_BYTE + 256


class TransformersProvider(DecodeProvider):
    """A model from transformers."""

    def enabled(self, case: Case, where: Where) -> str | None:
        return (
            None
            if importlib.util.find_spec("transformers") is not None
            else "transformers is not installed"
        )

    @property
    @abstractmethod
    def trunk(self) -> nn.Module:
        """The language model's layers."""

    @property
    def trunk_parameters(self) -> int:
        return sum(weight.numel() for weight in self.trunk.parameters())

    def verify(self) -> Verdict:
        """Check that there is the right number of codes, in range, and not all the same."""
        case = decode_case(self.setup, GATE_TOKENS, batch=GATE_BATCH)
        codes = self.prepare(case, {})()
        outside = int(((codes < 0) | (codes >= self.setup.size.num_codes)).sum())
        right = codes.shape == (GATE_BATCH, GATE_TOKENS) and len(codes.unique()) > 1
        return Verdict(
            outside if right else float("nan"),
            0,
            f"of {GATE_BATCH * GATE_TOKENS} codes out of range",
        )

    def llama_config(self, vocabulary: int) -> Any:
        """Return a Llama whose trunk has as many parameters as ours."""
        from transformers import LlamaConfig

        size = self.setup.size
        options: dict[str, Any] = {
            "num_key_value_heads": size.num_heads,
            "attn_implementation": "sdpa",
        }
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            intermediate_size=size.llama_d_ff,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            max_position_embeddings=self.setup.context,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            **options,
        )

    def built(self, make: Callable[[], nn.Module]) -> Any:
        """Build a module with random weights; torch's global generator is unchanged."""
        with torch.random.fork_rng(devices=[]), torch.device(self.setup.device):
            torch.manual_seed(SEED)
            return make().to(self.setup.dtype).eval()

    def prompt_ids(self, case: Case) -> Tensor:
        """Return int64 [n, P]: <bos>, the text's bytes, <begin of image>."""
        rows = [
            [BOS, *(FIRST_BYTE + byte for byte in text.encode()), BEGIN_OF_IMAGE]
            for text in prompts_of(case)
        ]
        return torch.tensor(rows, device=self.setup.device)


class JanusProvider(TransformersProvider):
    """`JanusForConditionalGeneration.generate(..., generation_mode="image")`, with vision parts as small as
    possible."""

    name = "janus"

    @cached_property
    def model(self) -> Any:
        """The model; its generation head and aligner are Janus' own and not part of the trunk."""
        from transformers import (
            JanusConfig,
            JanusForConditionalGeneration,
            JanusVisionConfig,
            JanusVQVAEConfig,
        )

        size = self.setup.size
        vision = JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=16,
            patch_size=8,
            mlp_ratio=1.0,
            depth=1,
            projection_dim=size.width,
        )
        codes = JanusVQVAEConfig(
            num_embeddings=size.num_codes,
            embed_dim=8,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1],
            num_res_blocks=1,
            projection_dim=size.width,
            image_token_embed_dim=size.width,
        )
        config = JanusConfig(
            text_config=self.llama_config(NUM_TEXT),
            vision_config=vision,
            vq_config=codes,
            image_token_id=EOS,
        )
        model = self.built(lambda: JanusForConditionalGeneration(config))
        settings = model.generation_config
        settings.bos_token_id, settings.pad_token_id, settings.eos_token_id = BOS, PAD, EOS
        settings.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
        return model

    @property
    def trunk(self) -> nn.Module:
        layers: nn.Module = self.model.model.language_model.layers
        return layers

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        model, ids_nP = self.model, self.prompt_ids(case)

        def draw() -> Tensor:
            model.model.vision_model.config.num_image_tokens = case.parameters["tokens"]
            # otherwise its cache, which every step reads completely, stays as long as any before it
            model._previous_max_cache_length = -1
            vars(model).pop("_cache", None)  # the same in transformers 4
            codes: Tensor = model.generate(
                ids_nP,
                attention_mask=torch.ones_like(ids_nP),
                generation_mode="image",
                guidance_scale=GUIDANCE,
                do_sample=True,
                top_k=TOP_K,
                top_p=TOP_P,
            )
            return codes.cpu()

        return draw


class LlamaGenProvider(TransformersProvider):
    """LlamaGen's `generate` (FoundationVision/LlamaGen, autoregressive/models/generate.py) on
    `LlamaModel`: static cache, both streams in one batch, top-k, top-p by sorting, `multinomial`;
    unchanged, or with its step compiled."""

    def __init__(
        self,
        setup: Setup,
        *,
        name: str | None = None,
        compiled: bool = False,
        like: LlamaGenProvider | None = None,
    ) -> None:
        super().__init__(setup)
        name = "llamagen" if name is None else name
        self.name, self._compiled, self._like = name, compiled, like

    def enabled(self, case: Case, where: Where) -> str | None:
        return super().enabled(case, where) or (
            compiling_refusal(where) if self._compiled else None
        )

    @cached_property
    def modules(self) -> Any:
        """Two modules: the model, with text and codes in one table, and the head over the codes only. Shared with
        `like`."""
        if self._like is not None:
            return self._like.modules
        from transformers import LlamaModel

        size = self.setup.size
        config = self.llama_config(NUM_TEXT + size.num_codes)
        head = nn.Linear(size.width, size.num_codes, bias=False)
        return self.built(lambda: nn.ModuleList([LlamaModel(config), head]))

    @property
    def trunk(self) -> nn.Module:
        layers: nn.Module = self.modules[0].layers
        return layers

    @cached_property
    def step(self) -> Any:
        """The model as called by every step after the first."""
        return torch.compile(self.modules[0], dynamic=False) if self._compiled else self.modules[0]

    def warm_up(self, case: Case) -> None:
        if not self._compiled:
            return super().warm_up(case)
        # each case has another cache length and is recompiled, which torch does only a few
        # times
        torch.compiler.reset()
        self.draw(self.prompt_ids(case), case.parameters["tokens"], num_steps=3)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        ids_nP, tokens = self.prompt_ids(case), case.parameters["tokens"]
        return lambda: self.draw(ids_nP, tokens, tokens)

    @torch.inference_mode()
    def draw(self, ids_nP: Tensor, tokens: int, num_steps: int) -> Tensor:
        """Draw the first `num_steps` codes of pictures with `tokens`, int64 [n, num_steps] on the CPU."""
        from transformers import StaticCache

        model, head = self.modules
        n, device = len(ids_nP), ids_nP.device
        special_nP = (ids_nP == BOS) | (ids_nP == BEGIN_OF_IMAGE)
        ids_S = torch.cat([ids_nP, torch.where(special_nP, ids_nP, PAD)])
        # before 5.2x
        keyword = (
            "cache"
            if "cache" in inspect.signature(type(model).forward).parameters
            else "past_key_values"
        )
        cache = {
            keyword: StaticCache(config=model.config, max_cache_len=PROMPT_TOKENS + tokens),
            "use_cache": True,
        }
        draw = code_drawer(n, device)
        codes = torch.empty(n, num_steps, dtype=torch.int64, device=device)
        hidden_SW = model(input_ids=ids_S, **cache).last_hidden_state[:, -1]
        for place in range(num_steps):
            code_n1 = draw(head(hidden_SW))
            codes[:, place] = code_n1[:, 0]
            if place + 1 < num_steps:
                ids_S1 = (NUM_TEXT + code_n1).repeat(2, 1)
                hidden_SW = self.step(input_ids=ids_S1, **cache).last_hidden_state[:, -1]
        return codes.cpu()


def baselines(setup: Setup) -> list[DecodeProvider]:
    """All baselines."""
    llamagen = LlamaGenProvider(setup)
    compiled = LlamaGenProvider(setup, name="llamagen-compiled", compiled=True, like=llamagen)
    half = replace(setup, dtype=torch.bfloat16)
    others = [] if setup.dtype == torch.bfloat16 else [LlamaGenProvider(half, name="llamagen-bf16")]
    return [JanusProvider(setup), llamagen, *others, compiled]
