"""`cm3 kinds` and `cm3 describe`, and the JSON of `cm3 plugin list`: what there is, told without
torch."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3apps.catalog import component_entry, kind_entry, laws_of
from cm3apps.cli.main import main
from cm3core import interfaces
from cm3core.plugins import KINDS, PluginInfo, load_registry
from cm3core.recipe import recipe_from_yaml
from cm3core.recipe.sections import FIXED_SECTIONS
from messages import tells

REGISTRY = load_registry()
COMPONENTS = [(kind, name) for kind in KINDS for name in REGISTRY.names(kind)]
PLUGIN = '''\
from dataclasses import dataclass, field
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import SamplerConfig

CM3_API = 1

@dataclass(kw_only=True)
class Inner:
    """Inside.

    Args:
        steps: how many.
    """

    steps: int = 2

@dataclass(kw_only=True)
class WarmConfig(SamplerConfig):
    """Draws as it likes,
    every time.

    More about it,
    in two lines.

    Args:
        heat: how hot, 0..1.
        words: what it says.
    """

    needs = ("embedder",)
    heat: float
    words: list[str] = field(default_factory=lambda: ["a", "b: c"])
    note: str | None = None
    inner: Inner = field(default_factory=Inner)

    def build(self): raise AssertionError("described, never built")

@hookimpl
def cm3_samplers():
    return {"warm": WarmConfig, "top_p": WarmConfig}
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return str(path)


def test_a_component_by_hand(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--plugin", mine, "describe", "warm"]) == 0
    out = capsys.readouterr().out
    head, _, rest = out.partition("laws of its kind's conformance kit\n")
    laws, _, recipe = rest.partition("\nin a recipe\n")
    assert (
        head
        == f"""\
sampler/warm: Draws as it likes, every time.
  More about it, in two lines.
  plugin mine ({mine}), config cm3_plugin_file_mine:WarmConfig
  needs the section embedder

keys
  heat: float, required
      how hot, 0..1.
  words: list[str], default ["a", "b: c"]
      what it says.
  note: str | None, default null
  inner: Inner, default {{"steps": 2}}
  inner.steps: int, default 2
      how many.

"""
    )
    assert (
        "  only_legal_ids_are_drawn: Each request gets an allowed id of the slice, even\n      "
        "with extreme" in laws
    )
    assert max(map(len, laws.splitlines())) <= 80
    assert (
        recipe
        == """\
  sampler:
    name: warm
    heat: ???  # must be given
    words: [a, 'b: c']
    note: null
    inner:
      steps: 2
"""
    )


def test_a_component_as_json(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", mine, "describe", "sampler/warm", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == [
        "kind",
        "name",
        "summary",
        "text",
        "plugin",
        "version",
        "origin",
        "config",
        "needs",
        "in_short",
        "keys",
        "laws",
        "snippet",
    ]
    assert (answer["kind"], answer["name"], answer["plugin"], answer["version"]) == (
        "sampler",
        "warm",
        "mine",
        "",
    )
    assert answer["keys"][0] == {
        "name": "heat",
        "type": "float",
        "default": None,
        "required": True,
        "text": "how hot, 0..1.",
        "documented_by": "WarmConfig",
    }
    assert answer["laws"] == laws_of(KINDS["sampler"])


def test_names(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, first in (
        ("mine/top_p", "sampler/top_p: Draws"),
        ("sampler/mine/top_p", "sampler/top_p: Draws"),
        ("bundled/top_p", "sampler/top_p: Sampling from one stream"),
        ("reranker/clip", "reranker/clip: Cosine"),
        ("sampler", "sampler: Samplers: logits of the guidance streams"),
    ):
        assert main(["--plugin", mine, "describe", name]) == 0
        assert tells(capsys.readouterr().out, first)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "clip",
            "'clip' is the name of several components\n  next: write embedder/clip or "
            "reranker/clip",
        ),
        (
            "top_p",
            "the sampler 'top_p' comes from several plugins: bundled, mine\n  next: write "
            "bundled/top_p or mine/top_p, or leave one out: CM3_DISABLE_PLUGINS=mine",
        ),
        (
            "smpler",
            "there is no kind, no component and no section 'smpler'\n  next: did you mean 'sampler'?",
        ),
        (
            "zzzzzz",
            "there is no kind, no component and no section 'zzzzzz'\n  next: `cm3 kinds` lists all",
        ),
        (
            "trian",
            "there is no kind, no component and no section 'trian'\n  next: did you mean 'train'?",
        ),
        (
            "train.lerning_rate",
            "the section 'train' has no key 'lerning_rate'\n  next: did you mean 'learning_rate'?",
        ),
        (
            "train.lr",
            "the section 'train' has no key 'lr'\n  next: `cm3 describe train` lists its keys",
        ),
        ("warm.heta", "the sampler 'warm' has no key 'heta'\n  next: did you mean 'heat'?"),
        ("sampler.heta", "no sampler has a key 'heta'\n  next: did you mean 'heat'?"),
        (
            "wram.heat",
            "there is no kind, no component and no section 'wram'\n  next: did you mean 'warm'?",
        ),
        ("sampler/worm", "no sampler is called 'worm'\n  next: did you mean 'warm'?"),
        ("sampler/mina/warm", "no plugin 'mina' is loaded\n  next: did you mean 'mine'?"),
        (
            "mina/warm",
            "no kind and no loaded plugin is called 'mina'\n  next: did you mean 'mine'?",
        ),
        (
            "mine/worm",
            "the plugin 'mine' provides no component 'worm'\n  next: did you mean 'warm'?",
        ),
    ],
)
def test_names_that_are_nothing_or_several(
    name: str, expected: str, mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plugin", mine, "describe", name]) == 2
    assert capsys.readouterr().err == f"error: cm3 describe {name}: {expected}\n"


def test_a_section_by_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["describe", "vocabulary"]) == 0
    assert (
        capsys.readouterr().out
        == """\
vocabulary: The table of token ids, see `cm3core.vocab.Vocabulary`.
  The image tokenizer determines the size of the image range.

keys
  num_text: int | None, default null
      size of the text range, including 4 control tokens (paper: 56,320). null:
      the text tokenizer's size + 4.
  num_sentinels: int, default 512
      mask tokens; the maximum number of spans masked in a sequence (metaseq:
      512).
  num_reserved: int, default 0
      unused ids between image codes and special tokens (paper: 1,024).
  multiple_of: int, default 8
      the embedding table's rows are padded to a multiple of this (metaseq: 8).

in a recipe
  vocabulary:
    num_text: null
    num_sentinels: 512
    num_reserved: 0
    multiple_of: 8
"""
    )


@pytest.mark.parametrize("section", FIXED_SECTIONS)
def test_each_key_of_a_section_is_described(
    section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a type and a text; its snippet is the section of a recipe, and each key has a path of its own."""
    assert main(["describe", section, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    config_class = FIXED_SECTIONS[section]
    top = [key for key in answer["keys"] if "." not in key["name"]]
    assert [key["name"] for key in top] == [one.name for one in fields(config_class)]
    assert all(key["text"] and key["type"] for key in answer["keys"])
    assert yaml.safe_load(answer["snippet"]) == {
        section: {one["name"]: one["default"] for one in top}
    }
    for key in answer["keys"]:
        assert main(["describe", f"{section}.{key['name']}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [
            {"path": f"{section}.{key['name']}", "key": key, "of": [section]}
        ]


def test_a_key_of_components(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all that have the same."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--plugin", mine, "describe", "sampler.heat"]) == 0
    assert capsys.readouterr().out == (
        "sampler.heat: float, required\n    how hot, 0..1.\n    of sampler/mine/top_p, sampler/warm\n"
    )
    assert main(["--plugin", mine, "describe", "warm.inner.steps"]) == 0
    assert capsys.readouterr().out == (
        "warm.inner.steps: int, default 2\n    how many.\n    of sampler/warm\n"
    )
    assert main(["describe", "train.learning_rate"]) == 0
    assert capsys.readouterr().out == (
        "train.learning_rate: float, default 0.001\n    peak learning rate of AdamW.\n"
    )


def test_a_plugin_that_is_left_out_is_named_where_its_name_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CM3_DISABLE_PLUGINS", "bundled")
    assert main(["describe", "cfg"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 describe cfg: there is no ... 'cfg'")


def test_kinds(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", mine, "kinds"]) == 0
    out = capsys.readouterr().out
    assert (
        "sampler: Samplers: logits of the guidance streams -> next token\n"
        "  hook cm3_samplers, interface Sampler, kit cm3kits.sampler:SamplerContract\n"
        "  bundled: cd_k, cfg, contrastive, edit_cfg, mixture, patch_knn, retrieval_cfg, structure_cfg, top_p\n"
        "  published: chameleon\n"
        "  mine: top_p, warm\n"
    ) in out
    assert out.endswith("for details: `cm3 describe KIND` and `cm3 describe KIND/NAME`\n")
    assert main(["kinds", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["kind"] for entry in entries] == [*KINDS, "prompt_rewriter", "finisher"]
    assert list(entries[0]) == [
        "kind",
        "summary",
        "hook",
        "config",
        "interface",
        "kit",
        "methods",
        "keys",
        "laws",
        "components",
    ]
    assert entries[0]["components"][1] == {
        "name": "byte",
        "plugin": "bundled",
        "version": REGISTRY.plugins[0].version,
        "origin": "cm3leon, cm3plugins",
        "summary": "Bytes of UTF-8. It has no keys.",
        "in_short": [],
    }


@pytest.mark.parametrize(
    "arguments", [["kinds"], ["describe", "sampler/cd_k"], ["describe", "image_tokenizer"]]
)
def test_lines_fit_a_terminal_and_are_whole_in_a_pipe(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(arguments) == 0
    piped = capsys.readouterr().out
    assert max(map(len, piped.splitlines())) > 60
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    # one word may be longer than a line
    assert [line for line in shown.splitlines() if len(line) > 60 and " " in line.strip()] == []
    assert shown.split() == piped.split()


@pytest.mark.parametrize("kind", KINDS)
def test_laws_read_from_the_source_are_those_of_the_kit(kind: str) -> None:
    module, _, name = KINDS[kind].kit.partition(":")
    kit: Any = getattr(importlib.import_module(module), name)
    laws = laws_of(KINDS[kind])
    assert set(laws) == set(kit.laws())
    assert len(laws) >= 4
    assert all(laws[law].startswith(first.rstrip()) for law, first in kit.laws().items())
    assert all(laws.values())


@pytest.mark.parametrize("kind", KINDS)
def test_methods_of_a_kind_are_what_is_abstract(kind: str) -> None:
    entry = kind_entry(kind, REGISTRY)
    abstract = getattr(interfaces, KINDS[kind].interface).__abstractmethods__
    assert {signature.partition("(")[0] for signature in entry.methods} == set(abstract)
    assert entry.summary
    assert "Recipe section" not in entry.summary


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_the_snippet_is_a_section_of_a_recipe(kind: str, name: str) -> None:
    """With values in place of `???` it composes, to the config's defaults."""
    entry = component_entry(kind, name, REGISTRY)
    required: dict[str, Any] = {
        key.name: {} if key.type.startswith("dict") else "somewhere"
        for key in entry.keys
        if key.required
    }
    snippet = entry.snippet
    inside = {"source": ("dataset", "emoji"), "condition": ("condition", "boxes")}
    if name == "conditioned":  # its keys are components
        required = {key: part for key, (_, part) in inside.items()}
    for key, value in required.items():
        snippet = snippet.replace(f"{key}: ???", f"{key}: {value}")
    recipe = recipe_from_yaml(snippet, REGISTRY)
    if name == "conditioned":
        required = {key: REGISTRY.config_class(*part)() for key, part in inside.items()}
    above, _, key = KINDS[kind].key.partition(".")
    found = getattr(getattr(recipe, above), key)[0] if key else getattr(recipe, kind)
    assert found == REGISTRY.config_class(kind, name)(**required)


def test_json_of_the_list_of_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "list", "--json"]) == 0
    (bundled,) = [info for info in json.loads(capsys.readouterr().out) if info["name"] == "bundled"]
    names = [item.name for item in fields(PluginInfo)]
    assert list(bundled) == names
    assert [name for name in names if f"{name}: " not in str(PluginInfo.__doc__)] == []
    assert (bundled["status"], bundled["origin"], bundled["reason"]) == (
        "loaded",
        "cm3leon, cm3plugins",
        "",
    )
    assert bundled["components"]["text_tokenizer"] == [
        "bpe",
        "byte",
        "classes",
        "hf",
        "sentencepiece",
        "tiktoken",
    ]


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys\nfrom cm3apps.cli.main import main\n"
        "for arguments in (['kinds'], ['describe', 'sampler'], ['describe', 'vqgan', '--json'], "
        "['plugin', 'list']):\n"
        "    assert main(arguments) == 0\n"
        "print(*{'torch', 'hypothesis', 'pytest', 'faiss', 'PIL'} & set(sys.modules), "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_image_tokenizers_say_the_form_of_their_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (
        ("ordered", "32 x 32 pixels, a sequence of at most 65 codes, 33 codes in the codebook"),
        ("residual", "32 x 32 pixels, a grid of 8 x 8 places with 4 codes each, 256 codes"),
    ):
        for wanted in (name, "image_tokenizer"):
            assert main(["describe", wanted]) == 0
            assert f"by default: {words}" in " ".join(capsys.readouterr().out.split())
