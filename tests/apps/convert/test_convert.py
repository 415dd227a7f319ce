"""`cm3 convert`: Meta's form computes what transformers computes after it is converted, both ways
give the same bytes, and damaged or foreign files are refused with nothing written."""

from __future__ import annotations

import hashlib
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
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from cm3apps.convert import hugging_face
from cm3apps.convert.facts import Facts, ffn_width, from_params, to_params
from cm3apps.convert.names import fewest_norms, halves, neighbours
from cm3core.cli.main import main

#: A model of 2 layers: V, E, H, K, D, F of names.py.
V, E, H, K, D, WIDTH = 48, 32, 4, 2, 8, 96
PARAMS = {
    "vocab_size": -1,
    "dim": E,
    "n_layers": 2,
    "n_heads": H,
    "n_kv_heads": K,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "qk_normalization": True,
}
#: Names of Meta's files and the dimension along which they are split; [D] norms are not.
LAYER = {
    "attention.wq.weight": ((H * D, E), 0),
    "attention.wk.weight": ((K * D, E), 0),
    "attention.wv.weight": ((K * D, E), 0),
    "attention.wo.weight": ((E, H * D), 1),
    "attention.q_normalization.weight": ((D,), None),
    "attention.q_normalization.bias": ((D,), None),
    "attention.k_normalization.weight": ((D,), None),
    "attention.k_normalization.bias": ((D,), None),
    "feed_forward.w1.weight": ((WIDTH, E), 0),
    "feed_forward.w2.weight": ((E, WIDTH), 1),
    "feed_forward.w3.weight": ((WIDTH, E), 0),
    "attention_norm.weight": ((E,), None),
    "ffn_norm.weight": ((E,), None),
}


def meta_shards(num_shards: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Random weights as Meta's files hold them; norms of heads differ between the files."""
    generator = torch.Generator().manual_seed(num_shards)

    def random(*shape: int) -> Tensor:
        return (0.3 * torch.randn(*shape, generator=generator)).to(dtype)

    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]

    def add(name: str, shape: tuple[int, ...], dim: int | None) -> None:
        if dim is not None:
            for shard, part in zip(shards, random(*shape).chunk(num_shards, dim), strict=True):
                shard[name] = part.clone()
            return
        same = random(*shape) + 1
        for shard in shards:
            shard[name] = random(*shape) + 1 if "normalization" in name else same.clone()

    add("tok_embeddings.weight", (V, E), 1)
    for layer in range(2):
        for name, (shape, dim) in LAYER.items():
            add(f"layers.{layer}.{name}", shape, dim)
    add("norm.weight", (E,), None)
    add("output.weight", (V, E), 0)
    return shards


def write_meta(
    folder: Path,
    shards: list[dict[str, Tensor]],
    *,
    checklist: bool = True,
    more: dict[str, Any] | None = None,
    **params: Any,
) -> Path:
    """A folder as Meta publishes it."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"model": PARAMS | params}))
    stated = {"model_parallel_size": len(shards)} if more is None else more
    (folder / "consolidate_params.json").write_text(json.dumps(stated))
    for place, shard in enumerate(shards):
        one = len(shards) == 1
        torch.save(shard, folder / ("consolidated.pth" if one else f"consolidated.{place:02}.pth"))
    if checklist:
        write_checklist(folder)
    return folder


def write_checklist(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    names.sort(key=lambda name: name.endswith(".pth"))
    names = ["params.json", "consolidate_params.json", *(n for n in names if n.endswith(".pth"))]
    lines = [f"{hashlib.md5((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "checklist.chk").write_text("".join(lines))


# ---- what Meta's form means


def reference(shards: list[dict[str, Tensor]], tokens_T: Tensor, swin_norm: bool) -> Tensor:
    """Logits [T, V] of Meta's files as they are: each file computes its own heads, neighbouring
    dimensions rotate together (as complex numbers), and results are added. From the paper's formulas."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    T = len(tokens_T)
    frequency = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    turn = torch.polar(
        torch.ones(T, D // 2, dtype=torch.float64), torch.arange(T)[:, None] * frequency
    )

    def rotate(x_THD: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_THD.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2).to(x_THD.dtype)

    def attention(x: Tensor, layer: str) -> Tensor:
        total = torch.zeros_like(x)
        for shard in shards:
            q, k, v = (
                (x @ shard[f"{layer}attention.w{c}.weight"].T).unflatten(-1, (-1, D)) for c in "qkv"
            )
            q, k = (
                rotate(
                    F.layer_norm(
                        y,
                        (D,),
                        shard[f"{layer}attention.{c}_normalization.weight"],
                        shard[f"{layer}attention.{c}_normalization.bias"],
                    )
                )
                for c, y in (("q", q), ("k", k))
            )
            repeats = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            scores = torch.einsum("thd,shd->hts", q, k) * D**-0.5
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            out = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
            total = total + out @ shard[f"{layer}attention.wo.weight"].T
        return total

    def feed_forward(x: Tensor, layer: str) -> Tensor:
        names = [f"{layer}feed_forward.w{number}.weight" for number in (1, 2, 3)]
        return sum(
            (F.silu(x @ shard[names[0]].T) * (x @ shard[names[2]].T)) @ shard[names[1]].T
            for shard in shards
        )

    x = torch.cat([shard["tok_embeddings.weight"] for shard in shards], dim=1)[tokens_T]
    for number in range(2):
        layer = f"layers.{number}."
        first, second = (shards[0][f"{layer}{name}_norm.weight"] for name in ("attention", "ffn"))
        if swin_norm:
            x = x + rms(attention(x, layer), first)
            x = x + rms(feed_forward(x, layer), second)
        else:
            x = x + attention(rms(x, first), layer)
            x = x + feed_forward(rms(x, second), layer)
    x = rms(x, shards[0]["norm.weight"])
    return torch.cat([x @ shard["output.weight"].T for shard in shards], dim=-1)


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_metas_files_compute_the_same_in_transformers(
    tmp_path: Path, num_shards: int, swin_norm: bool
) -> None:
    shards = meta_shards(num_shards)
    source = write_meta(tmp_path / "meta", shards, swin_norm=swin_norm)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {f"IMGIMG{'ABCD'[code]}Z": 4 + code for code in range(4)} | {"<reserved08707>": 9}
    (tokenizer / "text_tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    assert (
        main(["convert", str(source), "-o", str(tmp_path / "hf"), "--tokenizer", str(tokenizer)])
        == 0
    )
    model = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert model.config.swin_norm == swin_norm
    assert model.config.vocabulary_map["<image>"] == 9
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 2)
    tokens_T = torch.randint(0, V, (11,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.lm_head(model.model(tokens_T[None]).last_hidden_state)[0]
    expected = reference(shards, tokens_T, swin_norm)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- both ways


@pytest.mark.parametrize("same_norms", [False, True])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_there_and_back_gives_the_same_bytes(
    tmp_path: Path, num_shards: int, same_norms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face.write_hugging_face, "__defaults__", (20_000,))
    shards = meta_shards(num_shards, torch.bfloat16)
    for shard in shards if same_norms else []:
        shard |= {name: t.clone() for name, t in shards[0].items() if "normalization" in name}
    source = write_meta(tmp_path / "meta", shards, swin_norm=True)
    (source / "LICENSE").write_text("terms")
    assert main(["convert", str(source), "-o", str(tmp_path / "hf")]) == 0
    files = sorted(path.name for path in (tmp_path / "hf").glob("model-*"))
    assert len(files) > 1
    assert files[0].endswith(f"-of-{len(files):05}.safetensors")
    assert (tmp_path / "hf" / "LICENSE").read_text() == "terms"
    assert main(["convert", str(tmp_path / "hf"), "-o", str(tmp_path / "back")]) == 0
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    stored = json.loads((tmp_path / "hf" / "conversion.json").read_text())
    assert stored["from"] == "meta"
    assert "noncommercial research only" in stored["licence"]
    assert all(len(md5) == 32 for md5 in stored["files"].values())


def huggings(folder: Path, *, key_heads: int = K, **changes: Any) -> Path:
    """A folder that transformers wrote, its image tokenizer included; norms differ by head."""
    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=V,
        hidden_size=E,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=H,
        num_key_value_heads=key_heads,
        vocabulary_map={"IMGIMGAZ": 4, "<image>": 9},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 4,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
        **changes,
    )
    model = ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                rows = torch.randn(key_heads, D).repeat_interleave(len(parameter) // key_heads, 0)
                parameter.copy_(rows)
    model.save_pretrained(folder)
    return folder


def test_what_transformers_wrote_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = huggings(tmp_path / "hf")
    assert main(["convert", str(source), "-o", str(tmp_path / "meta")]) == 0
    printed = capsys.readouterr()
    assert "tensors of the image tokenizer" in printed.out
    assert printed.err.count("Chameleon Research License") == 1
    assert len(list((tmp_path / "meta").glob("consolidated.*.pth"))) == K, "as the norms need"
    assert main(["convert", str(tmp_path / "meta"), "-o", str(tmp_path / "back")]) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    kept = {name: tensor for name, tensor in before.items() if "vqmodel" not in name}
    assert after.keys() == kept.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in kept.items())


def test_norms_of_groups_are_expanded(tmp_path: Path) -> None:
    """Files of Alpha-VLLM have a row for each of fewer groups of heads."""
    source = huggings(tmp_path / "hf")
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "q_norm" in name or "k_norm" in name:
            tensors[name] = tensor[:: len(tensor) // K].contiguous()
    save_file(tensors, path, {"format": "pt"})
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), "--to", "hf"]) == 0
    expected = load_file(huggings(tmp_path / "again") / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_shards_can_be_changed(tmp_path: Path) -> None:
    shards = meta_shards(1)
    source = write_meta(tmp_path / "one", shards)
    out = tmp_path / "two"
    assert main(["convert", str(source), "-o", str(out), "--to", "meta", "--shards", "2"]) == 0
    assert json.loads((out / "consolidate_params.json").read_text()) == {"model_parallel_size": 2}
    files = [torch.load(out / f"consolidated.0{place}.pth") for place in range(2)]
    tokens_T = torch.arange(9)
    for ours, theirs in ((files, shards),):
        a, b = (reference(one, tokens_T, False) for one in (ours, theirs))
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert main(["convert", str(out), "--check"]) == 0


def test_rope_freqs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tensor in some files, None in Anole's."""
    for name, value in (("tensor", torch.zeros(4)), ("none", None)):
        [shard] = meta_shards(1)
        source = write_meta(tmp_path / name, [shard | {"rope.freqs": value}])  # type: ignore[dict-item]  # a stand-in
        assert main(["convert", str(source), "--check"]) == 0
        assert "left out: 1 tensors computed anew" in capsys.readouterr().out


# ---- facts


@pytest.mark.parametrize("d_ff", [1, 40, 11_008, 12_345, 22_016])
@pytest.mark.parametrize("dim", [32, 4096, 8192])
def test_any_width_of_the_feed_forward_layer_can_be_stated(dim: int, d_ff: int) -> None:
    facts = Facts(10, dim, 2, 4, 2, d_ff, 1e-5, 1e4, False)
    assert from_params(to_params(facts), "", vocab_size=10) == facts


def test_published_widths() -> None:
    assert [ffn_width(dim, 256, 1.0) for dim in (4096, 8192)] == [11_008, 22_016]


def test_orders_of_rotation_are_inverse() -> None:
    rows = torch.arange(24.0).view(12, 2)
    assert torch.equal(neighbours(halves(rows, 3), 3), rows)
    assert halves(torch.arange(12), 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_fewest_norms() -> None:
    rows = torch.tensor([[1.0], [1.0], [2.0], [2.0], [3.0], [3.0], [3.0], [3.0]])
    assert [fewest_norms(rows, heads) for heads in (1, 2, 4, 8)] == [0, 0, 4, 4]
    assert fewest_norms(torch.ones(8, 1), 8) == 1


# ---- refusals


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
        "has 1 of 2 files of weights",
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
    "no object": (lambda f: (f / "params.json").write_text("[]"), "is no object of JSON"),
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
        "params.json: is far too long for what it is",
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
        "consolidated.01.pth: norm.weight holds values that are not finite",
    ),
    "whole numbers": (
        lambda f: _reshape(f, "norm.weight", torch.ones(E, dtype=torch.int64)),
        "consolidated.01.pth: norm.weight is of type int64, and weights are floating-point numbers",
    ),
    "other heads": (
        lambda f: _edit(f / "params.json", model=PARAMS | {"n_kv_heads": 4}),
        "wk.weight is [8, 32], and the sizes say [16, 32]",
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
        "output.weight is [48, 32], and the sizes say [24, 32]",
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
            "is missing; checklist.chk",
        ),
        (
            "".join(content.splitlines(True)[:-1]),
            "checklist.chk: does not list consolidated.01.pth",
        ),
        ("<html>", "checklist.chk, line 1: is no MD5 and name"),
        (content.replace("  params.json", "  ../params.json"), "line 1: is no MD5 and name"),
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
        "is missing, one of 2 files that model.safetensors.index.json names",
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
        "gate_proj.weight is [40, 32], and the sizes say [41, 32]",
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
        "model.safetensors: model.norm.weight holds values that are not finite",
    ),
    "flags": (
        lambda f: _replace(f, "model.norm.weight", torch.ones(E, dtype=torch.bool)),
        "model.norm.weight is of type bool, and weights are floating-point numbers",
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
    assert "model.layers.1.self_attn.q_norm.bias: has other values for each head" in message


def test_wrong_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))
    assert "is no folder" in refusal([str(tmp_path / "gone")], tmp_path / "out", capsys)
    (tmp_path / "empty").mkdir()
    message = refusal([str(tmp_path / "empty")], tmp_path / "out", capsys)
    assert "has neither params.json (Meta) nor config.json" in message
    (tmp_path / "there").mkdir()
    assert "is there already" in refusal([str(source)], tmp_path / "there", capsys)
    message = refusal([str(source), "--shards", "2"], tmp_path / "out", capsys)
    assert "--shards: is for --to meta only" in message
    (tmp_path / "empty" / "text_tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    arguments = [str(source), "--tokenizer", str(tmp_path / "empty")]
    assert "names no codes of pictures" in refusal(arguments, tmp_path / "out", capsys)


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


def test_what_a_kill_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "meta", meta_shards(1))
    script = (
        "import os, signal, sys\n"
        "from cm3apps.convert import hugging_face\n"
        "write = hugging_face.save_file\n"
        "def killed(*arguments):\n"
        "    write(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "hugging_face.save_file = killed\n"
        "from cm3core.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["convert", str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2, "the model, and what was being written"
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta", "out"]
