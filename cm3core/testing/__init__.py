"""Conformance kits: the laws that every implementation of a component kind obeys, as tests for its
author to inherit.

A whole conformance test is a config:

    from cm3core.testing.sampler import SamplerContract
    from my_package import MySamplerConfig

    class TestMine(SamplerContract):
        config = MySamplerConfig(temperature=0.7)

pytest then shows a test for each law (`test_only_legal_ids_are_drawn`, ...), with examples drawn
and shrunk by Hypothesis. There is a kit for each kind, `cm3core.plugins.KINDS[kind].kit` names it;
`cm3core.testing.sampler`, `.text_tokenizer` and so on. Needs `pytest` and `hypothesis`:
`pip install 'cm3leon[test]'`.

`config`
    An instance of the component's config dataclass, built in the kind's usual way: a text tokenizer on a small corpus, a decoder
    for a small vocabulary, a retriever over an example memory, a reranker with an embedder and a tiny model. What a kit builds
    with stands in class attributes and methods (`vocabulary`, `grid`, `attention`, `embedder`, `memory()`, `likelihood()`), which
    a test may override; so may it tolerances (`tolerance`, `flat_tolerance`, ...) and `max_examples`, for slow components.
`make(self)`
    For what isn't built from a config alone (weights made by the test, say): returns a new component; equal calls, equal ones.
    Keep `config` beside it where you can: some laws compare the component with what its config states, or load what was saved.
`waive_LAW(self)`
    A law that is not meant for a component is waived in the open: the method returns the reason, and the test is a skip that
    shows it. A waiver of no law, or without a reason, is an error, and so is a test of a law replaced by another (or by None).
`Kit.laws()`
    Law -> what it says, in one line.
`Kit.for_config(config)`
    The same test class, made by a program.

A law that is passed says little by itself: each is known to fail for some component that is wrong
in just that way (`tests/core/testing` has them all).

For tests of your own there are Hypothesis strategies (`cm3core.testing.strategies`: `texts`,
`vocabularies`, `pictures`, `images`, `codes`, `documents`, `memories`, `banks`, `token_sequences`,
`logits`) and small right components without files: `ListSource`, `HashEmbedder` and
`example_documents` in `cm3core.testing.samples`, `TinyDecoder` in `cm3core.testing.tiny`,
`DenseAttention` in `cm3core.testing.attention`.
"""

from importlib.util import find_spec

from cm3core.errors import MissingPackageError

for _package in ("pytest", "hypothesis"):
    if find_spec(_package) is None:
        raise MissingPackageError.extra("cm3core.testing", _package, "test")
