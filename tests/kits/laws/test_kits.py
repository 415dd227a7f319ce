"""Every kind has a kit that builds each bundled component from its config alone, imports lightly,
and is itself tested."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cm3core.interfaces
from cm3core.errors import CM3Error
from cm3core.plugins import KINDS, load_registry
from messages import tells

#: Bundled components that defaults alone don't build, each with what it lacks; their own tests give
#: it.
NOT_BY_DEFAULT = {
    ("embedder", "clip"): "has neither a default nor a value",
    ("extractor", "by_embedder"): "is not set",
    ("extractor", "inception"): "has neither a default nor a value",
    ("image_tokenizer", "chameleon"): "is null: the model 'chameleon' needs its publisher's file",
    ("image_tokenizer", "dall_e"): "is null: the model 'dall_e' needs its publisher's file",
    ("image_tokenizer", "emu3"): "is null: the model 'emu3' needs its publisher's file",
    (
        "image_tokenizer",
        "glm_image",
    ): "is null: GLM-Image's tokenizer needs its publisher's weights",
    ("image_tokenizer", "ibq"): "is null: the model 'ibq_16384' needs its publisher's file",
    ("image_tokenizer", "ldm"): "is null: the model 'vq_f8' needs its publisher's file",
    ("image_tokenizer", "llamagen"): "is null: the model 'vq_16' needs its publisher's file",
    ("image_tokenizer", "movq"): "is null: the model 'movqgan_270M' needs its publisher's file",
    ("image_tokenizer", "taming"): "is null: the model 'gumbel_f8' needs its publisher's file",
    (
        "layout",
        "janus",
    ): "needs the token '<\uff5c\u2581pad\u2581\uff5c>', but the text tokenizer lacks it",
    ("text_tokenizer", "classes"): "is null",
    ("text_tokenizer", "hf"): "is null",
    ("text_tokenizer", "sentencepiece"): "is null",
    ("text_tokenizer", "tiktoken"): "is null",
    ("image_tokenizer", "bitwise"): "is null: there are no weights to use",
    ("image_tokenizer", "ordered"): "is null: there are no weights to use",
    ("image_tokenizer", "product"): "is null: there are no weights to use",
    ("image_tokenizer", "residual"): "is null: there are no weights to use",
    ("metric", "lpips"): "has neither a default nor a value",
    ("metric", "spice"): "has neither a default nor a value",
    ("upscaler", "external"): "has neither a default nor a value",
    ("condition", "depth"): "is not set; 'depth' needs weights",
    ("condition", "hed"): "is not set; 'hed' needs weights",
    ("condition", "normals"): "is not set; 'normals' needs weights",
    ("condition", "pose"): "is not set; 'pose' needs weights",
    ("dataset", "tokens"): "has neither a default nor a value",
    ("dataset", "folder"): "has neither a default nor a value",
    ("dataset", "jsonl"): "has neither a default nor a value",
    ("dataset", "coco"): "has neither a default nor a value",
    ("dataset", "conditioned"): "has neither a default nor a value",
    ("dataset", "conversations"): "has neither a default nor a value",
    ("dataset", "picture_pairs"): "has neither a default nor a value",
    ("dataset", "vqa"): "has neither a default nor a value",
    ("dataset", "svg_folder"): "has neither a default nor a value",
    ("dataset", "table"): "has neither a default nor a value",
    ("dataset", "mixture"): "has neither a default nor a value",
    ("dataset", "webdataset"): "has neither a default nor a value",
    ("dataset", "tuxpaint"): "there is no such folder; Tux Paint's stamps are not installed",
    ("attention", "triton"): "there is no CUDA device",
    ("attention", "xformers"): "there is no CUDA device, and its kernels don't run on a CPU",
}
#: What depends on the machine: it is built where it can be.
MAY_BE_BUILT = {
    ("dataset", "tuxpaint"),
    ("attention", "triton"),
    ("attention", "xformers"),
}
#: These talk to a server: their own tests start one.
NEEDS_A_SERVER = {("retriever", "pgvector")}
#: Kits that speak in tensors; a test imports the others without torch, whatever their components
#: need.
WITH_TENSORS = {"attention", "decoder", "sampler"}
REGISTRY = load_registry()
BUNDLED = [
    (kind, name)
    for kind in KINDS
    for name in REGISTRY.names(kind)
    if "bundled" in REGISTRY.owners(kind, name) and (kind, name) not in NEEDS_A_SERVER
]


def kit(kind: str) -> Any:
    module, _, name = KINDS[kind].kit.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("kind", "name"), BUNDLED, ids=["-".join(one) for one in BUNDLED])
def test_a_kit_builds_what_needs_no_files(kind: str, name: str) -> None:
    config = REGISTRY.config_class(kind, f"bundled/{name}")
    attributes = {}
    if kind == "decoder":  # the defaults are 300 million parameters
        config = config(num_layers=1, d_model=16, num_heads=2, context_length=32)  # type: ignore[call-arg,assignment]  # the decoder's
        attributes["max_examples"] = 1
    reason = None
    try:
        subject = kit(kind).for_config(config, **attributes)().subject
        assert isinstance(subject, getattr(cm3core.interfaces, KINDS[kind].interface))
    except CM3Error as error:
        reason = error.cause
    allowed = {NOT_BY_DEFAULT.get((kind, name))} | (
        {None} if (kind, name) in MAY_BE_BUILT else set()
    )
    assert reason in allowed, "defaults should build it, or the reason should be listed here"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kit_has_its_kind_its_laws_and_its_mutants(kind: str) -> None:
    assert kit(kind).kind == kind
    assert all(kit(kind).laws().values()), "each law says in a line what it wants"
    test = Path(__file__).parent / f"test_{kind}_kit.py"
    assert f"assert_covers({kit(kind).__name__}, MUTANTS)" in test.read_text(encoding="utf-8")


def run(*lines: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )


def test_kits_without_tensors_import_no_torch() -> None:
    done = run(
        "import sys",
        *(f"import cm3kits.{kind}" for kind in KINDS if kind not in WITH_TENSORS),
        "import cm3kits.strategies",
        "assert 'torch' not in sys.modules, 'torch'",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["pytest", "hypothesis"])
def test_a_missing_package_is_named(package: str) -> None:
    done = run(
        "import importlib.util",
        "real = importlib.util.find_spec",
        f"importlib.util.find_spec = lambda name, package=None: None if name == '{package}' else "
        "real(name, package)",
        "import cm3kits.text_tokenizer",
    )
    assert tells(done.stderr, f"... MissingPackageError: cm3kits: the package '{package}'")


def test_retrievers_leave_the_users_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    config = load_registry().config_class("retriever", "dense")
    test = kit("retriever").for_config(config, max_examples=2)
    assert test().subject.memory
    assert os.environ["CM3_CACHE"] == str(tmp_path)
    assert not any(tmp_path.iterdir())
