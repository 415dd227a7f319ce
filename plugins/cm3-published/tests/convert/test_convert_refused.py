"""`cm3 convert`: damaged or foreign files are refused with nothing written, and nothing is left of a kill."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chameleon_files import (
    PARAMS,
    E,
    V,
    huggings,
    meta_shards,
    write_checklist,
    write_meta,
)
from cm3apps.cli.main import main
from cm3published.convert import hugging_face
from messages import tells


def refusal(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that writes nothing."""
    before = sorted(out.parent.iterdir())
    assert main(["convert", *arguments, "-o", str(out)]) == 2
    assert sorted(out.parent.iterdir()) == before, "nothing is written"
    message = capsys.readouterr().err
    assert "  next: " in message
    return message


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _reshape(folder: Path, name: str, tensor: Tensor | None) -> None:
    shard = torch.load(folder / "consolidated.01.pth")
    shard.pop(name, None)
    torch.save(shard | ({} if tensor is None else {name: tensor}), folder / "consolidated.01.pth")


BAD_META: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (
        lambda f: (f / "consolidated.00.pth").unlink(),
        "consolidated.00.pth: there is no such file",
    ),
    "shards fewer than stated": (
        lambda f: (f / "consolidated.01.pth").unlink(),
        "has 1 of 2 weights files",
    ),
    "no shards": (
        lambda f: [path.unlink() for path in f.glob("*.pth")],
        "consolidated.pth: there is no such file",
    ),
    "half a download": (
        lambda f: (f / "consolidated.01.pth").write_bytes(
            (f / "consolidated.01.pth").read_bytes()[:999]
        ),
        "consolidated.01.pth: is not a readable file of tensors",
    ),
    "not JSON": (lambda f: (f / "params.json").write_text("{"), "params.json: is not JSON"),
    "no object": (lambda f: (f / "params.json").write_text("[]"), "is not a JSON object"),
    "lacks a key": (lambda f: (f / "params.json").write_text("{}"), "params.json: lacks 'dim'"),
    "no norms": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"qk_normalization": False}),
        "qk_normalization is false",
    ),
    "impossible": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_heads": 0}),
        "params.json: states impossible sizes",
    ),
    "not UTF-8": (
        lambda f: (f / "params.json").write_bytes(b'{"dim": "\xff"}'),
        "params.json: is not JSON ('utf-8' codec can't decode byte 0xff",
    ),
    "far too long": (
        lambda f: os.truncate(f / "params.json", 2**40),  # a sparse file
        "params.json: is far too large for this kind of file",
    ),
    "a size of another type": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_layers": "two"}),
        "params.json: n_layers is 'two', must be a whole number",
    ),
    "a billion layers": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_layers": 10**9}),
        "params.json: states impossible sizes",
    ),
    "a hundred billion shards": (
        lambda f: (f / "consolidated.01.pth").rename(f / "consolidated.99999999999.pth"),
        "consolidated.01.pth: there is no such file",
    ),
    "not finite": (
        lambda f: _reshape(f, "norm.weight", torch.full((E,), math.nan)),
        "consolidated.01.pth: norm.weight contains non-finite values",
    ),
    "whole numbers": (
        lambda f: _reshape(f, "norm.weight", torch.ones(E, dtype=torch.int64)),
        "consolidated.01.pth: norm.weight has the dtype int64, but weights are floating-point numbers",
    ),
    "other heads": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_kv_heads": 4}),
        "wk.weight is [8, 32], but the config implies [16, 32]",
    ),
    "more layers": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_layers": 3}),
        "tensors missing: layers.2.attention.k_normalization.bias,",
    ),
    "fewer layers": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_layers": 1}),
        "tensors not known: layers.1.attention.k_normalization.bias,",
    ),
    "a tensor lost": (
        lambda f: _reshape(f, "norm.weight", None),
        "consolidated.01.pth: tensors missing: norm.weight",
    ),
    "a tensor of another shape": (
        lambda f: _reshape(f, "output.weight", torch.zeros(V, E)),
        "output.weight is [48, 32], but the config implies [24, 32]",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_META))
def test_bad_files_of_meta_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(2), checklist=False)
    damage, expected = BAD_META[case]
    damage(source)
    assert expected in refusal([str(source)], tmp_path / "out", capsys)


def test_checksums_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(2))
    assert main(["convert", str(source), "--check"]) == 0
    assert "MD5 verified" in capsys.readouterr().out
    _edit(source / "params.json", extra=1)
    message = refusal([str(source)], tmp_path / "out", capsys)
    assert "params.json: its MD5 is " in message
    write_checklist(source)
    content = (source / "checklist.chk").read_text()
    for text, expected in (
        (
            content.replace("consolidated.01.pth", "consolidated.02.pth"),
            "is missing, but checklist.chk",
        ),
        (
            "".join(content.splitlines(True)[:-1]),
            "checklist.chk: does not list consolidated.01.pth",
        ),
        ("<html>", "checklist.chk, line 1: is not an MD5 and a name"),
        (content.replace("  params.json", "  ../params.json"), "line 1: is not an MD5 and a name"),
    ):
        (source / "checklist.chk").write_text(text)
        assert expected in refusal([str(source)], tmp_path / "out", capsys)


def _index(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    weight_map = dict.fromkeys(tensors, "model.safetensors") | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _replace(folder: Path, name: str, tensor: Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


BAD_HF: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "model.safetensors: there is no such file",
    ),
    "an index of absent files": (
        lambda f: _index(f, **{"lm_head.weight": "model-00002-of-00002.safetensors"}),
        "is missing, one of 2 files listed in model.safetensors.index.json",
    ),
    "an index of absent tensors": (
        lambda f: _index(f, **{"more.weight": "model.safetensors"}),
        "model.safetensors: lacks more.weight",
    ),
    "an index that leaves its folder": (
        lambda f: _index(f, **{"lm_head.weight": "../model.safetensors"}),
        "has no weight_map",
    ),
    "another model": (
        lambda f: _edit(f / "config.json", model_type="llama"),
        "config.json: model_type is 'llama', not 'chameleon'",
    ),
    "another rotation": (
        lambda f: _edit(f / "config.json", rope_parameters={"rope_type": "yarn"}),
        "rope_type is 'yarn'",
    ),
    "contradiction": (
        lambda f: _edit(f / "config.json", intermediate_size=41),
        "gate_proj.weight is [40, 32], but the config implies [41, 32]",
    ),
    "a rotation that is no object": (
        lambda f: _edit(f / "config.json", rope_parameters=[1]),
        "config.json: rope_parameters is [1], must be an object",
    ),
    "half an id": (
        lambda f: _edit(f / "config.json", vocab_size=48.5),
        "config.json: vocab_size is 48.5, must be a whole number",
    ),
    "a norm that overflows": (
        lambda f: _edit(f / "config.json", rms_norm_eps=1e300),
        "config.json: rms_norm_eps is 1e+300, must be a number",
    ),
    "not finite": (
        lambda f: _replace(f, "model.norm.weight", torch.full((E,), math.inf)),
        "model.safetensors: model.norm.weight contains non-finite values",
    ),
    "flags": (
        lambda f: _replace(f, "model.norm.weight", torch.ones(E, dtype=torch.bool)),
        "model.norm.weight has the dtype bool, but weights are floating-point numbers",
    ),
    "a long header": (
        lambda f: (f / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        "model.safetensors: is not a readable file of tensors",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_HF))
def test_bad_files_of_hugging_face_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = huggings(tmp_path / "hf")
    damage, expected = BAD_HF[case]
    damage(source)
    assert expected in refusal([str(source)], tmp_path / "out", capsys)


def test_norms_that_meta_cant_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = huggings(tmp_path / "hf")
    arguments = [str(source), "--shards", "1"]
    assert "each of 1 files has one norm" in refusal(arguments, tmp_path / "out", capsys)
    assert "3 files don't divide" in refusal(
        [str(source), "--shards", "3"], tmp_path / "out", capsys
    )
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.q_norm.bias"][1] += 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    message = refusal([str(source)], tmp_path / "out", capsys)
    assert tells(
        message, "... model.layers.1.self_attn.q_norm.bias: has different values for each head"
    )


def test_wrong_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))
    assert "is not a folder" in refusal([str(tmp_path / "gone")], tmp_path / "out", capsys)
    (tmp_path / "empty").mkdir()
    message = refusal([str(tmp_path / "empty")], tmp_path / "out", capsys)
    assert tells(message, "... has neither params.json ... config.json ... recipe.yaml")
    (tmp_path / "there").mkdir()
    assert "already exists" in refusal([str(source)], tmp_path / "there", capsys)
    message = refusal([str(source), "--shards", "2"], tmp_path / "out", capsys)
    assert "--shards: only works with --to meta" in message
    (tmp_path / "empty" / "text_tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    arguments = [str(source), "--tokenizer", str(tmp_path / "empty")]
    assert "has no names of image codes" in refusal(arguments, tmp_path / "out", capsys)


def test_a_hostile_provenance_writes_nothing_elsewhere(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))
    assert main(["convert", str(source), "-o", str(tmp_path / "hf")]) == 0
    stored = json.loads((tmp_path / "hf" / "conversion.json").read_text())
    stored["meta_params"] |= {"../evil": "x", "consolidated.pth": "x"}
    (tmp_path / "hf" / "conversion.json").write_text(json.dumps(stored))
    assert main(["convert", str(tmp_path / "hf"), "-o", str(tmp_path / "back")]) == 0
    assert not (tmp_path / "evil").exists()
    back, origin = (folder / "consolidated.pth" for folder in (tmp_path / "back", source))
    assert back.read_bytes() == origin.read_bytes()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face, "save_file", full)
    message = refusal([str(source)], tmp_path / "out", capsys)
    assert "can't be written ([Errno 28] No space left on device)" in message


@pytest.mark.slow
def test_what_a_kill_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))
    script = (
        "import os, signal, sys\n"
        "from cm3published.convert import hugging_face\n"
        "write = hugging_face.save_file\n"
        "def killed(*arguments):\n"
        "    write(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "hugging_face.save_file = killed\n"
        "from cm3apps.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["convert", str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2, "the model, and what was being written"
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta", "out"]
