"""What is used today, with random weights and a trunk with as many parameters as ours. transformers
is imported on demand.

Both run the unconditional stream as a second half of the batch, over the same prompt with its text
replaced by padding, and keep keys and values in transformers' `StaticCache`, whose attention reads
its whole length at every step.

Legend: n pictures, P prompt tokens, S = 2 n rows (all conditional ones first), R image codes, W
width.
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
from torch import Tensor, nn

from cm3core.interfaces.benchmark import (
    Case,
    DecodeProvider,
    Inputs,
    Verdict,
    Where,
    compiling_refusal,
)
from cm3lab.benchmarks.decode.engine import GATE_BATCH, GATE_TOKENS
from cm3lab.benchmarks.decode.workload import (
    PROMPT_TOKENS,
    SEED,
    Setup,
    code_drawer,
    decode_case,
    prompts_of,
)
from cm3lab.benchmarks.ops.guided_sample import GUIDANCE, TOP_K, TOP_P

#: Ids of the text vocabulary: specials, then bytes.
BOS, PAD, EOS, BEGIN_OF_IMAGE, FIRST_BYTE = range(5)
NUM_TEXT = FIRST_BYTE + 256


class TransformersProvider(DecodeProvider):
    """A model of transformers."""

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
        """The right number of codes, in range, and not all the same."""
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
        """A Llama whose trunk has as many parameters as ours."""
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
        """A module with random weights, ready; torch's global generator is left unchanged."""
        with torch.random.fork_rng(devices=[]), torch.device(self.setup.device):
            torch.manual_seed(SEED)
            return make().to(self.setup.dtype).eval()

    def prompt_ids(self, case: Case) -> Tensor:
        """int64 [n, P]: <bos>, the text's bytes, <begin of image>."""
        rows = [
            [BOS, *(FIRST_BYTE + byte for byte in text.encode()), BEGIN_OF_IMAGE]
            for text in prompts_of(case)
        ]
        return torch.tensor(rows, device=self.setup.device)


class JanusProvider(TransformersProvider):
    """`JanusForConditionalGeneration.generate(..., generation_mode="image")`, with vision parts
    that are as small as possible."""

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
            # otherwise its cache, all of which every step reads, stays as long as any before it
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
    `LlamaModel`: static cache, both streams in one batch, top-k, top-p by a sort, `multinomial`; as
    it is, or with its step compiled."""

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
        """Two modules: the model, over text and codes in one table, and the head over the codes
        only. Shared with `like`."""
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
        """The model as every step after the first calls it."""
        return torch.compile(self.modules[0], dynamic=False) if self._compiled else self.modules[0]

    def warm_up(self, case: Case) -> None:
        if not self._compiled:
            return super().warm_up(case)
        # each case has another cache length and is compiled again, which torch does only a few
        # times
        torch.compiler.reset()
        self.draw(self.prompt_ids(case), case.parameters["tokens"], num_steps=3)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        ids_nP, tokens = self.prompt_ids(case), case.parameters["tokens"]
        return lambda: self.draw(ids_nP, tokens, tokens)

    @torch.inference_mode()
    def draw(self, ids_nP: Tensor, tokens: int, num_steps: int) -> Tensor:
        """The first `num_steps` codes of pictures of `tokens`, int64 [n, num_steps] on the CPU."""
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
