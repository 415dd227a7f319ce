"""Conformance kits: the laws of every component kind, as tests for plugin authors to inherit.

A complete conformance test is a config:

    from cm3kits.sampler import SamplerContract
    from my_package import MySamplerConfig

    class TestMine(SamplerContract):
        config = MySamplerConfig(temperature=0.7)

pytest then runs one test per law (`test_only_legal_ids_are_drawn`, ...), with examples drawn and
shrunk by Hypothesis. Each kind has a kit, listed in `cm3core.plugins.KINDS[kind].kit`:
`cm3kits.sampler`, `.text_tokenizer` and so on. They need `pytest` and `hypothesis`:
`pip install 'cm3leon[test]'`.

`config`
    An instance of the component's config dataclass, built in the usual way of its kind: a text tokenizer
    on a small corpus, a decoder for a small vocabulary, a retriever over an example memory, a
    reranker with an embedder and a tiny model. The kit's inputs are class attributes and methods
    (`vocabulary`, `grid`, `attention`, `embedder`, `memory()`, `likelihood()`), which a test may
    override, as well as tolerances (`tolerance`, `flat_tolerance`, ...) and, for slow components,
    `max_examples`.
`make(self)`
        For components that a config alone doesn't build (with weights created by the test, for example): returns
        a new component; equal calls return equal components, whatever the state of the global generators of
        `random`, numpy and torch, which the kits change between calls. Set `config`, too, if you can: some
        laws compare the component with its config, or load a saved component.
`waive_LAW(self)`
        Waives a law that does not apply to a component: the method returns the reason, and the test is
        skipped with that reason. Waiving an unknown law, or without a reason, is an error. So is replacing
        the test of a law by another one (or by None).
`observe(self, component)`
        Returns the component's results for a few fixed inputs, as name -> values. The laws of configs compare them:
        another value of any key must change something and, if outputs change, the fingerprint; another process must get
        the same. A config lists keys that affect only speed, memory or training in `not_in_outputs`.
`Kit.laws()`
    Law -> its description, in one line.
`Kit.for_config(config)`
    Returns the same test class, for programs.

A failing law is shrunk for at most a few seconds, a whole kit for half a minute. The report states what was done,
what was expected, the result and where it differs, the law, the next step, and the config. Each law is known to fail
for some component with exactly that fault (`tests/kits/laws` has them all).

`Contract` is the base of all kits; a plugin that adds a kind derives its kit from it
(docs/adding-a-kind.md). For your own tests there are Hypothesis strategies (`cm3kits.strategies`: `texts`,
`vocabularies`, `pictures`, `images`, `codes`, `documents`, `memories`, `banks`, `token_sequences`,
`logits`) and small correct components without files: `ListSource`, `HashEmbedder` and
`example_documents` in `cm3kits.samples`, `TinyDecoder` in `cm3kits.tiny`,
`DenseAttention` in `cm3kits.attention`.
"""

from importlib.util import find_spec
from pkgutil import iter_modules

from cm3core.errors import MissingPackageError

for _package in ("pytest", "hypothesis"):
    if find_spec(_package) is None:
        raise MissingPackageError.extra("cm3kits", _package, "test")

import pytest  # noqa: E402  # checked above, with a message

# pytest shows the values of a failed assertion in a kit, as in a test file. Modules are given by
# name, since this package itself is already being imported.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))

from cm3kits._laws import Contract  # noqa: E402  # after its assertions are registered

__all__ = ["Contract"]
