"""Generation and likelihood under every layout: row ends are fed, batches don't matter, sums agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole
from cm3core.interfaces.layout import LayoutConfig, VocabularyParts
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import VocabularySizes
from cm3kits.layout import NUM_CODES, PUBLISHED, NamedBytes
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3published.layouts.emu3 import Emu3LayoutConfig
from cm3published.sampler import ChameleonSamplerConfig
from cm3run.generation.engine import Engine, Request
from cm3run.generation.likelihood import Likelihood
from layout_parts import LAYOUTS

GRID = (4, 2)
PICTURE = Codes(np.array([0, 1, 2, 3, 4, 5, 0, 1], np.int32), GRID)
#: The published ids of Emu3, in a smaller table.
EMU3 = Emu3LayoutConfig(
    begin=300,
    padding=301,
    end=302,
    picture_begin=303,
    picture_end=304,
    picture_start=305,
    row_end=306,
    frame_end=307,
    first_code=308,
    vocab_size=320,
)
#: All but `glm_image`, whose pictures have at least a preview: plugins/cm3-published/tests/test_glm_image_parts.
CONFIGS = {name: config() for name, config in LAYOUTS.items() if name != "glm_image"} | {
    "emu3": EMU3
}
#: Names of tokens that other layouts lack.
JANUS = (
    *("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("<\uff5c\u2581pad\u2581\uff5c>", "<begin_of_image>", "<end_of_image>"),
    *("<|User|>", "<|Assistant|>"),
)
#: What the layouts refuse that only draw, or only read texts: the places of the others in `DOCUMENTS`.
FITTING = {"janus": (0, 2), "llamagen": (0, 2)}
DOCUMENTS: list[Document] = [
    (Text("a bell"), ImageHole()),
    (PICTURE, Text("what?"), TextHole(5)),
    (Text("a"), Codes(PICTURE.codes, GRID, np.arange(8) >= 3)),
    (Text("red"), PICTURE, Text("blue"), ImageHole()),
    (MaskedText(("once ", TextHole(4))),),
]


def parts(name: str) -> tuple[Engine, Likelihood]:
    config: LayoutConfig = CONFIGS[name]
    tokenizer = NamedBytes(JANUS if name == "janus" else PUBLISHED)
    sizes = VocabularySizes(tokenizer.vocab_size, NUM_CODES, num_sentinels=8)
    layout = config.build(VocabularyParts(tokenizer, NUM_CODES, sizes), GRID)
    vocabulary = layout.vocabulary
    serializer = Serializer(vocabulary, tokenizer, GRID, layout=layout)
    sizes = LlamaConfig(
        num_layers=2, d_model=32, num_heads=2, d_ff=48, context_length=96, init_std=0.3
    )
    torch.manual_seed(0)
    decoder = sizes.build(vocabulary, SDPAAttentionConfig().build(), GRID).eval()
    engine = Engine(decoder, serializer, TopPSamplerConfig().build(), vocabulary)
    return engine, Likelihood(decoder, serializer, vocabulary)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_all_kinds_is_what_each_is_alone(name: str) -> None:
    engine, likelihood = parts(name)
    samplers = [None, ChameleonSamplerConfig(text_guidance_scale=1.5).build()]
    requests = [
        Request(DOCUMENTS[place], seed=place, sampler=samplers[place % 2])
        for place in FITTING.get(name, range(len(DOCUMENTS)))
    ]
    together = engine.complete(requests)
    for request, done in zip(requests, together, strict=True):
        [alone] = engine.complete([request])
        assert alone.document == done.document
        contents = likelihood.contents_of(request.document, done.document)
        if any("\ufffd" in one.text for one in done.document if isinstance(one, Text)):
            continue  # bytes that are no character are not what is encoded again
        [scored] = likelihood.log_probability([request.document], [contents])
        assert math.isclose(scored.nats, done.log_probability, rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_end_in_what_is_fed(name: str) -> None:
    """What the decoder sees while it draws is the sequence that training has."""
    engine, _ = parts(name)
    fed: list[int] = []
    inference = engine.inference
    plain = inference.hidden_states

    def recorded(tokens_BT: torch.Tensor, **options: object) -> torch.Tensor:
        fed.extend(tokens_BT[0].tolist())
        return plain(tokens_BT, **options)

    inference.hidden_states = recorded  # type: ignore[method-assign]  # a stand-in
    document: Document = (Text("a bell"), ImageHole())
    [done] = engine.complete([Request(document, seed=1)])
    sequence = engine.serializer.sequence(done.document).tokens.tolist()
    assert fed == sequence[: len(fed)]
    behind = engine.serializer.frame
    ends = len(behind.row_end) if behind.ends_last_row else 0
    left = 1 + ends + len(behind.closing) + len(engine.serializer.layout.end)
    assert len(sequence) - len(fed) == left


def test_the_likelihood_takes_what_a_stream_sees() -> None:
    """With all texts hidden, texts make no difference."""
    _, likelihood = parts("lumina")
    hidden = PromptVariant(hide_text="all")
    documents: list[Document] = [(Text(words), ImageHole()) for words in ("a", "red bell")]
    content = likelihood.contents_of(documents[0], (Text("a"), PICTURE))
    found = likelihood.log_probability(documents, [content, content], variant=hidden)
    assert found[0].nats == pytest.approx(found[1].nats, rel=1e-6)
