"""Types of a downstream project: what a plugin and a program see of the installed wheel, by mypy
--strict (slow: most of it is reading torch's types) and by pyright."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from source_packages import PACKAGES

#: A plugin with a component of several kinds, a command and a model.
PLUGIN = """\
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cm3apps.cli import add_overrides, registry_of
from cm3core.document import Document, PixelArray, Text
from cm3core.errors import CM3Error, MissingPackageError, RecipeError, TokenizerError, close_match
from cm3core.files import write_text
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import (
    DocumentSource,
    DocumentSourceConfig,
    Embedder,
    Filters,
    GuidanceStream,
    PromptVariant,
    Retrieved,
    Retriever,
    RetrieverConfig,
    Sampler,
    SamplerConfig,
    SamplingPlan,
    TextTokenizer,
    TextTokenizerConfig,
    Upscaler,
    UpscalerConfig,
)

if TYPE_CHECKING:
    from torch import Tensor

CM3_API = 1


@dataclass(kw_only=True)
class NibbleConfig(TextTokenizerConfig):
    high_first: bool = True

    def check(self) -> None:
        if not self.high_first:
            raise RecipeError("text_tokenizer.high_first", "is false", close_match("truee", ["true"]))

    def build(self, corpus: Iterable[str] | None = None) -> Nibble:
        return Nibble(self.high_first)

    def load(self, folder: Path) -> Nibble:
        if not (folder / "nibble.txt").is_file():
            raise TokenizerError(str(folder), "holds no tokenizer", "save one")
        return self.build()


class Nibble(TextTokenizer):
    def __init__(self, high_first: bool) -> None:
        self.high_first = high_first

    @property
    def vocab_size(self) -> int:
        return 16

    @property
    def fingerprint(self) -> str:
        return "nibbles"

    def _encode(self, text: str) -> list[int]:
        return [half for byte in text.encode() for half in divmod(byte, 16)]

    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(16 * a + b for a, b in zip(ids[::2], ids[1::2])).decode(errors="replace")

    def save(self, folder: Path) -> None:
        write_text(folder / "nibble.txt", self.fingerprint)


class Twice(Upscaler):
    @property
    def scale(self) -> int:
        return 2

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return pixels_NHWC.repeat(2, axis=1).repeat(2, axis=2)


@dataclass(kw_only=True)
class TwiceConfig(UpscalerConfig):
    def build(self) -> Upscaler:
        return Twice()


class Lines(DocumentSource):
    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines)

    def __len__(self) -> int:
        return len(self.lines)

    def id(self, index: int) -> str:
        return str(index)

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return (Text(self.lines[index]),)

    @property
    def fingerprint(self) -> str:
        return str(len(self.lines))


@dataclass(kw_only=True)
class LinesConfig(DocumentSourceConfig):
    path: str
    words: list[str] = field(default_factory=list)

    def build(self) -> Lines:
        return Lines(Path(self.path).read_text(encoding="utf-8").splitlines())


class First(Retriever):
    def __init__(self, memory: DocumentSource) -> None:
        self._memory = memory

    @property
    def memory(self) -> DocumentSource:
        return self._memory

    def _retrieve(self, queries: Sequence[Document], num_retrieved: int,
                  exclude: Sequence[Collection[str]]) -> list[list[Retrieved]]:
        rest = [[index for index in range(len(self._memory)) if not self.is_excluded(index, names)] for names in exclude]
        return [[Retrieved(index=index, id=self._memory.id(index), score=0.0) for index in indices[:num_retrieved]]
                for indices in rest]


@dataclass(kw_only=True)
class FirstConfig(RetrieverConfig):
    def build(self, memory: DocumentSource, embedder: Embedder | None) -> Retriever:
        if embedder is not None:
            raise MissingPackageError.extra("first", "nothing", "none")
        return First(memory)


class Greedy(Sampler):
    def plan(self, modality: str) -> SamplingPlan:
        return SamplingPlan((GuidanceStream(PromptVariant(hide_text="none"), 1.0),), filters=Filters(temperature=0.0))

    def draw(self, logits_SR: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, plans: Sequence[SamplingPlan], *, first_id: int,
             allowed_nR: Tensor | None, seed_n: Tensor, position_n: Tensor) -> Tensor:
        scores_nR = logits_SR[stream_rows_nG[:, 0]]
        if allowed_nR is not None:
            scores_nR = scores_nR.masked_fill(~allowed_nR, float("-inf"))
        return scores_nR.argmax(dim=1) + first_id


@dataclass(kw_only=True)
class GreedyConfig(SamplerConfig):
    def build(self) -> Greedy:
        return Greedy()


def run(args: Namespace) -> int:
    try:
        print(registry_of(args).names("sampler"))
    except CM3Error as error:
        print(error.place, error.cause, error.next_step)
    return 0


def configure(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.set_defaults(run=run)


@hookimpl
def cm3_text_tokenizers() -> Mapping[str, type[TextTokenizerConfig]]:
    return {"nibble": NibbleConfig}


@hookimpl
def cm3_upscalers() -> Mapping[str, type[UpscalerConfig]]:
    return {"twice": TwiceConfig}


@hookimpl
def cm3_datasets() -> Mapping[str, type[DocumentSourceConfig]]:
    return {"lines": LinesConfig}


@hookimpl
def cm3_retrievers() -> Mapping[str, type[RetrieverConfig]]:
    return {"first": FirstConfig}


@hookimpl
def cm3_samplers() -> Mapping[str, type[SamplerConfig]]:
    return {"greedy": GreedyConfig}


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"sing": "my_plugin:configure"}


@hookimpl
def cm3_models() -> Mapping[str, Path]:
    return {"small": Path(__file__).parent / "small"}
"""
#: A program that uses a model, recipes and documents, and a conformance test.
PROGRAM = """\
from __future__ import annotations

import cm3core
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, TextHole, content_keys, text_of
from cm3core.images import fit, open_image, save_png
from cm3run.sheets import grid
from cm3core.interfaces import Sampler, SamplerConfig
from cm3core.plugins import load_registry, plugin_versions
from cm3core.recipe import Recipe, compose, list_recipes
from cm3kits.sampler import SamplerContract
from my_plugin import GreedyConfig, Nibble, NibbleConfig

model: cm3core.Model = cm3core.load("bundled:emoji64", num_threads=1)
pictures = model.generate("a red apple", num_images=4, seed=1)
pixels: PixelArray = pictures[0].pixels
warmer = model.generate("a red apple", guidance_scale=1.5, temperature=0.9)
together = model.generate("a red apple", seed=1, sampling={"guidance_scale": 1.5})
shape: tuple[int, ...] = pixels.shape
codes: Codes = pictures[0].codes
save_png("apple.png", pixels, {"prompt": pictures[0].prompt})
text: str = model.caption("apple.png").text
again: list[PixelArray] = model.decode([codes])
for picture in model.stream(["one", "two"], num_images=1):
    retrieved: list[str] = [document.text for document in picture.retrieved]
infilled = model.infill("apple.png", (0, 0, 8, 8), "a bite")
document: Document = (Text("a red apple"), ImageHole())
caption: Document = (Image("apple", lambda: pixels), TextHole())
words: str = text_of(document)
keys: frozenset[str] = frozenset(content_keys(caption))
registry = load_registry()
versions: dict[str, str] = plugin_versions(registry.plugins)
recipe: Recipe = compose("tiny", ["train.steps=1"], registry=registry)
steps: int | None = recipe.train.steps
names: list[str] = [one.name for one in list_recipes()]
sampler_config: SamplerConfig | None = recipe.sampler
tokenizer: Nibble = NibbleConfig(high_first=True).build()
ids: list[int] = tokenizer.encode("text")
sheet: PixelArray = grid([[fit(open_image("apple.png"), (64, 64))]], captions=[["apple"]])
sampler: Sampler = GreedyConfig().build()


class TestGreedy(SamplerContract):
    config = GreedyConfig()
    max_examples = 5
"""
#: Lines of a plugin and a program, and what is wrong with each by mypy and by pyright.
WRONG = """\
from __future__ import annotations

from collections.abc import Mapping

import cm3core
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import SamplerConfig, TextTokenizer, TextTokenizerConfig
from my_plugin import Nibble, NibbleConfig


@hookimpl
def cm3_samplers() -> Mapping[str, type[SamplerConfig]]:
    return {"nibble": NibbleConfig}  # dict-item, reportReturnType


class Other(TextTokenizerConfig):
    def build(self, corpus: int) -> TextTokenizer:  # override, reportIncompatibleMethodOverride
        return Nibble(True)


NibbleConfig(low_first=True)  # call-arg, reportCallIssue
TextTokenizer()  # abstract, reportAbstractUsage
cm3core.load("bundled:emoji64", threads=1)  # call-arg, reportCallIssue
model = cm3core.load("bundled:emoji64")
model.generate(3)  # arg-type, reportArgumentType
model.caption("apple.png").word  # attr-defined, reportAttributeAccessIssue
ids: list[str] = Nibble(True).encode("text")  # assignment, reportAssignmentType
"""
EXPECTED = {
    number: re.findall(r"[\w-]+", line.partition("  # ")[2])
    for number, line in enumerate(WRONG.splitlines(), 1)
    if "  # " in line
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The downstream project's folder; nothing in it is a setting of a type checker."""
    folder = tmp_path_factory.mktemp("downstream")
    for name, text in (("my_plugin", PLUGIN), ("program", PROGRAM), ("wrong", WRONG)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mypy_says(clean: Path, project: Path, mypy: list[str]) -> Callable[[str], list[str]]:
    """Lines of `mypy --strict` about a file of the project, against the installed wheel. One run
    sees all files."""
    command = [
        *mypy,
        "--no-error-summary",
        "--hide-error-context",
        "--python-executable",
        str(clean / "python"),
        ".",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.stderr == ""
    return lambda name: [
        line for line in done.stdout.splitlines() if line.startswith(f"{name}.py:")
    ]


@pytest.mark.slow
def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert {f"{package}/py.typed" for package in PACKAGES} <= set(archive.namelist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_plugin", "program"])
def test_mypy_strict_has_nothing_against_it(
    name: str, mypy_says: Callable[[str], list[str]]
) -> None:
    assert mypy_says(name) == []


@pytest.mark.slow
def test_mypy_finds_what_is_wrong(mypy_says: Callable[[str], list[str]]) -> None:
    found = {}
    for line in mypy_says("wrong"):
        if match := re.fullmatch(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]", line):
            found[int(match[1])] = match[2]
    assert found == {number: codes[0] for number, codes in EXPECTED.items()}


@pytest.mark.slow
def test_pyright_agrees(clean: Path, project: Path) -> None:
    """basedpyright carries pyright and its Node.js inside, so that nothing is fetched; in pyright's
    own standard mode."""
    if importlib.util.find_spec("basedpyright") is None:
        pytest.skip("basedpyright is not installed: pip install 'cm3leon[dev]'")
    settings = {"typeCheckingMode": "standard", "include": ["*.py"], "pythonVersion": "3.11"}
    (project / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--outputjson",
        "--pythonpath",
        str(clean / "python"),
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    problems: dict[str, dict[int, str]] = {"my_plugin.py": {}, "program.py": {}, "wrong.py": {}}
    for problem in json.loads(done.stdout)["generalDiagnostics"]:
        if problem["severity"] == "error":
            problems[Path(problem["file"]).name][problem["range"]["start"]["line"] + 1] = problem[
                "rule"
            ]
    expected = {number: codes[1] for number, codes in EXPECTED.items()}
    assert problems == {"my_plugin.py": {}, "program.py": {}, "wrong.py": expected}
