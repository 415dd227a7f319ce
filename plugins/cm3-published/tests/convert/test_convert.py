"""`cm3 convert`: Meta's form computes what transformers computes after it is converted, and both ways
give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from chameleon_files import (
    D,
    K,
    V,
    huggings,
    meta_shards,
    write_meta,
)
from cm3apps.cli.main import main
from cm3published.convert import hugging_face
from cm3published.convert.facts import Facts, ffn_width, from_params, to_params
from cm3published.convert.names import fewest_norms, halves, neighbours


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
        assert "left out: 1 tensors recomputed on demand" in capsys.readouterr().out


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
