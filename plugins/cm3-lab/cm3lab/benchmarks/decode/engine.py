"""Our engine and its variants as providers, on a decoder with random weights; and the check that each must pass
before it is timed.

Legend: T drawn tokens, R image codes, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from cm3core.document import Codes, Document, ImageHole, Text
from cm3core.errors import CM3Error
from cm3core.interfaces.decoder import Decoder
from cm3core.interfaces.sampler import Sampler
from cm3core.sequence.serialize import Serializer
from cm3lab.benchmarks.decode.workload import (
    SEED,
    Setup,
    decode_case,
    grid_of,
    prompt_text,
    prompts_of,
)
from cm3lab.benchmarks.kernels.ops.guided_sample import GUIDANCE, TOP_K, TOP_P
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.layouts.cm3leon import NUM_CONTROL, CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3plugins.text_tokenizers.byte import NUM_BYTES, ByteTokenizer
from cm3run.benchmarks import Case, DecodeProvider, Inputs, Verdict, Where
from cm3run.generation.engine import Engine, EngineOptions, Progress, Request, candidate_seed

#: A greedy token is right if no other code's mixed logit is higher by more than this many
#: standard deviations of the mixed logits: rounding in the check's own arithmetic, by the weights'
#: dtype.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}
#: Number of pictures and tokens in the check.
GATE_BATCH, GATE_TOKENS = 2, 32


@dataclass(frozen=True)
class Variant:
    """Our engine with other options.

    Args:
        options: fields of `EngineOptions`.
        weight_bytes: bytes per weight, for the lower bound; None: those of the run's dtype. The engine
            reports the size of keys and values.
        rounding: see `ROUNDING`; None: by the run's dtype.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: float | None = None
    rounding: float | None = None


#: Provider -> its variant. A new variant needs only a line here.
VARIANTS: dict[str, Variant] = {
    "engine": Variant(),
    "engine-bf16": Variant({"precision": "bf16"}, weight_bytes=2, rounding=0.1),
    "engine-int8": Variant({"precision": "int8"}, weight_bytes=1, rounding=0.1),
}


class RandomModel:
    """A decoder with random weights and everything that an engine needs; created once, for all
    variants.

    The weights are chosen so that every layer changes its input by about the input's own size, the head isn't
    the embedding, and logits have a spread of about 2. Otherwise greedy tokens would be the same whatever the
    cache contains, sampled tokens the same as greedy ones, and the check would notice
    nothing.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.text_tokenizer = setup, ByteTokenizer()
        self.vocabulary = CM3LeonVocabulary(
            NUM_BYTES + NUM_CONTROL, setup.size.num_codes, num_sentinels=8
        )

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder, created on first use; torch's global generator is unchanged."""
        size = self.setup.size
        config = CM3LeonConfig(
            num_layers=size.num_layers,
            d_model=size.width,
            num_heads=size.num_heads,
            d_ff=size.d_ff,
            context_length=self.setup.context,
            tie_embeddings=False,
        )
        with torch.random.fork_rng(devices=[]), torch.device(self.setup.device), torch.no_grad():
            torch.manual_seed(SEED)
            decoder = config.build(self.vocabulary, SDPAAttentionConfig().build(), (1, 1))
            for name, weight in decoder.module.named_parameters():
                spread = 2.0 if name.startswith("embed_output") else 1.0  # of its output
                weight.normal_(
                    std=1.0
                    if name.startswith(("embed_tokens", "embed_pos"))
                    else spread * weight.shape[1] ** -0.5
                )
        return decoder.to(self.setup.dtype).eval()

    def serializer(self, tokens: int) -> Serializer:
        """Return the serializer for pictures with this many tokens."""
        return Serializer(self.vocabulary, self.text_tokenizer, grid_of(tokens))


def sampler(temperature: float = 1.0) -> Sampler:
    """Return the sampler that every provider applies to its logits: guidance, top-k, top-p; our plausibility set,
    which the others lack, is off."""
    return CFGSamplerConfig(
        guidance_scale=GUIDANCE,
        temperature=temperature,
        top_k=TOP_K,
        top_p=TOP_P,
        plausible_top_p=1.0,
    ).build()


class EngineProvider(DecodeProvider):
    """`cm3run.generation.engine.Engine`.

    Args:
        name: name of the variant.
        setup: settings shared by all providers.
        variant: see `Variant`.
        model: model shared by the variants.
    """

    def __init__(self, name: str, setup: Setup, variant: Variant, model: RandomModel) -> None:
        super().__init__(setup)
        self.name, self.variant, self.model = name, variant, model

    def enabled(self, case: Case, where: Where) -> str | None:
        """Whether to run; an unsupported precision is reported when the engine is created."""
        if self.variant.options.get("precision") == "bf16" and self.setup.dtype == torch.bfloat16:
            return "equals the default engine"
        try:
            self.engine(case.parameters["tokens"], pictures=1)
        except CM3Error as error:
            return error.cause
        return None

    @cached_property
    def number_bytes(self) -> tuple[float, float]:
        size, plain = self.setup.size, self.setup.dtype.itemsize
        of_token = self.engine(tokens=2, pictures=1).inference.cache_bytes(1) / (
            2 * size.num_layers * size.width
        )
        return self.variant.weight_bytes or plain, of_token or plain

    @property
    def trunk_parameters(self) -> int:
        return sum(
            weight.numel()
            for name, weight in self.model.decoder.module.named_parameters()
            if name.startswith("layers.")
        )

    def engine(self, tokens: int, pictures: int, temperature: float = 1.0) -> Engine:
        """Return an engine for pictures with this many tokens, all in one batch."""
        options: dict[str, Any] = {
            "max_rows": 2 * pictures,
            "num_threads": self.setup.threads,
            # "auto" would be bfloat16 on a GPU
            "precision": "fp32" if self.setup.dtype == torch.float32 else "auto",
        } | dict(self.variant.options)
        return Engine(
            self.model.decoder,
            self.model.serializer(tokens),
            sampler(temperature),
            self.model.vocabulary,
            EngineOptions(**options),
        )

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        return self.drawing(case)

    def drawing(
        self, case: Case, progress: Progress | None = None, temperature: float = 1.0
    ) -> Callable[[], Tensor]:
        """Return the timed function; `progress` as in `Engine.complete`."""
        requests = requests_of(case)
        engine = self.engine(case.parameters["tokens"], len(requests), temperature)
        return lambda: codes_of(
            [completion.document for completion in engine.complete(requests, progress=progress)]
        )

    def replying(self, case: Case, keep: bool) -> Callable[[], Tensor]:
        """Return a function that draws a picture in answer to a new question each time, after a conversation that was
        read once.

        Args:
            case: `pictures` is the number of pictures of its size before the question.
            keep: keep the conversation's cache; otherwise each call reads it again.
        """
        tokens, number = case.parameters["tokens"], case.parameters["pictures"]
        engine = self.engine(tokens, pictures=1)
        codes_RT = torch.randint(
            self.setup.size.num_codes, (number, tokens), generator=torch.manual_seed(SEED)
        )
        before: Document = tuple(
            Codes(codes_T.numpy().astype("int32"), grid_of(tokens)) for codes_T in codes_RT
        )

        def reply(question: str) -> Tensor:
            document = (*before, Text(question), ImageHole())
            done = engine.complete([Request(document, seed=SEED, keep=keep)])
            return codes_of([done[0].document[-1:]])

        questions = map(prompt_text, count())
        if keep:
            reply(next(questions))
        return lambda: reply(next(questions))

    def verify(self) -> Verdict:
        case = decode_case(self.setup, GATE_TOKENS, batch=GATE_BATCH)
        drawn = self.drawing(case, temperature=0.0)()
        rounding = (
            ROUNDING[self.setup.dtype] if self.variant.rounding is None else self.variant.rounding
        )
        unlike = sum(
            self._unlike(request, codes, rounding)
            for request, codes in zip(requests_of(case), drawn, strict=True)
        )
        return Verdict(
            unlike,
            0,
            f"of {drawn.numel()} greedy tokens differ from a recomputation without a cache",
        )

    @torch.inference_mode()
    def _unlike(self, request: Request, codes_T: Tensor, rounding: float) -> int:
        """Count the codes that are not the most probable ones given those before them: 0 if and only if the whole
        picture is greedy. Evaluates all positions at once, without a cache."""
        serializer, decoder, image = (
            self.model.serializer(len(codes_T)),
            self.model.decoder,
            self.model.vocabulary.image,
        )
        mixed_TR = torch.zeros(len(codes_T), len(image), device=self.setup.device)
        for stream in sampler().plan("image").streams:
            prompt = serializer.prompt(request.document, request.retrieved, stream.variant)
            tokens = torch.cat(
                [torch.from_numpy(prompt.tokens).long(), codes_T[:-1] + image.start]
            )[None]
            hidden_TW = decoder.hidden_states(tokens.to(self.setup.device))[0, len(prompt) - 1 :]
            mixed_TR += stream.weight * decoder.logits(hidden_TW, image).float()
        chosen_T = mixed_TR.gather(1, codes_T[:, None].to(mixed_TR.device))[:, 0]
        return int((mixed_TR.amax(1) - chosen_T > rounding * mixed_TR.std(1)).sum())


def requests_of(case: Case) -> list[Request]:
    """Return a request for each picture."""
    candidates = case.parameters["candidates"]
    documents: list[Document] = [(Text(text), ImageHole()) for text in prompts_of(case)]
    return [
        Request(document, seed=candidate_seed(SEED + place // candidates, place % candidates))
        for place, document in enumerate(documents)
    ]


def codes_of(documents: Sequence[Document]) -> Tensor:
    """Return the pictures' codes, int64 [pictures, tokens]."""
    pictures = [
        segment for document in documents for segment in document if isinstance(segment, Codes)
    ]
    return torch.stack([torch.from_numpy(picture.codes).long() for picture in pictures])


def engines(setup: Setup, model: RandomModel | None = None) -> list[EngineProvider]:
    """Return all variants of one model."""
    model = RandomModel(setup) if model is None else model
    return [EngineProvider(name, setup, variant, model) for name, variant in VARIANTS.items()]
