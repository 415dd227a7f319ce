"""`cm3 convert` of LlamaGen's class-conditional GPT: it draws here as its paper and code describe it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch import Tensor

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3core.errors import CM3Error
from cm3core.interfaces.sampler import PromptVariant
from cm3run.generation.engine import Request
from cm3run.model import Model
from messages import tells
from tiny_llamagen import (
    CLASSES,
    CODES,
    GRID,
    HEADS,
    LAYERS,
    WIDTH,
    gpt_tensors,
    write_llamagen,
    write_vq,
)


def reference(tensors: dict[str, Tensor], label: int, codes: list[int]) -> Tensor:
    """Logits [1 + n, CODES] behind a class and n codes, in float64.

    Llama's blocks; pairs (2d, 2d + 1) of a head are turned, the first half of them by the row, the
    second by the column. For the class the table of cosines and sines is zero: its queries and keys
    are, too.
    """
    w = {name: tensor.double() for name, tensor in tensors.items()}
    D = WIDTH // HEADS
    wavelengths = 10_000.0 ** (-torch.arange(0, D // 2, 2).double() / (D // 2))
    angles = [
        torch.cat([place // GRID[1] * wavelengths, place % GRID[1] * wavelengths])
        for place in range(len(codes))
    ]
    zero = torch.zeros(1, D // 2).double()
    cos = torch.cat([zero, *(angle.cos()[None] for angle in angles)])[:, None]
    sin = torch.cat([zero, *(angle.sin()[None] for angle in angles)])[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w[name]

    def turned(x: Tensor) -> Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    table = w["cls_embedding.embedding_table.weight"], w["tok_embeddings.weight"]
    x = torch.cat([table[0][label][None], table[1][torch.tensor(codes, dtype=torch.long)]])
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        qkv = norm(x, f"{at}attention_norm.weight") @ w[f"{at}attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (HEADS, D)) for part in qkv.chunk(3, -1))
        q, k = turned(q), turned(k)
        scores = torch.einsum("ihd,jhd->hij", q, k) / D**0.5
        scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1).double()
        seen = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
        x = x + seen @ w[f"{at}attention.wo.weight"].T
        h = norm(x, f"{at}ffn_norm.weight")
        gate, up = (h @ w[f"{at}feed_forward.w{one}.weight"].T for one in (1, 3))
        x = x + (F.silu(gate) * up) @ w[f"{at}feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ w["output.weight"].T


class Converted(NamedTuple):
    folder: Path
    tensors: dict[str, Tensor]
    model: Model


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("llamagen")
    own = write_llamagen(folder)
    return Converted(folder, gpt_tensors(), cm3core.load(own))


def test_logits_are_the_references_at_each_step(converted: Converted) -> None:
    """With the cache, code by code, for a class and for none."""
    parts = converted.model.components
    ids, decoder = parts.vocabulary.image, parts.decoder.for_inference("fp32")
    codes = np.random.default_rng(1).integers(0, CODES, GRID[0] * GRID[1]).tolist()
    for label in (3, CLASSES):
        expected = reference(converted.tensors, label, codes)
        fed = [label, *(ids.start + code for code in codes)]
        cache = decoder.allocate_cache(1, len(fed))
        for place, token in enumerate(fed):
            with torch.no_grad():
                hidden = decoder.hidden_states(
                    torch.tensor([[token]]), cells_BT=torch.tensor([[place - 1]]), cache=cache
                )
                own = decoder.logits(hidden[0], ids)[0]
            cache.advance([1])
            assert (own - expected[place]).abs().max() <= 1e-5 * expected.abs().max()


def test_prompts_are_a_class_or_none(converted: Converted) -> None:
    serializer = converted.model.components.serializer
    hidden = PromptVariant(hide_text="all")
    assert serializer.prompt((Text("3"), ImageHole())).tokens.tolist() == [3]
    assert serializer.prompt((Text("3"), ImageHole()), variant=hidden).tokens.tolist() == [CLASSES]
    assert serializer.prompt((ImageHole(),)).tokens.tolist() == [CLASSES]
    with pytest.raises(CM3Error) as caught:
        serializer.prompt((Text(""), ImageHole()))
    assert tells(caught.value.cause, "has nothing before ... 'llamagen'")
    with pytest.raises(CM3Error) as caught:
        serializer.prompt((ImageHole(), TextHole(1)))
    assert tells(caught.value.cause, "is a text ... 'llamagen'")


def test_guided_pictures_are_those_of_the_formula(converted: Converted) -> None:
    """At temperature 0 each code is the largest of u + 4 (c - u), u being the class 'none'."""
    sampler = converted.model.sampler_config("cfg", temperature=0.0)
    assert (sampler.guidance_scale, sampler.top_k) == (4.0, CODES)
    request = Request((Text("4"), ImageHole()), sampler=sampler.build())
    [done] = converted.model.engine.complete([request])
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    codes = drawn.codes.tolist()
    c, u = (reference(converted.tensors, label, codes[:-1]) for label in (4, CLASSES))
    mixed = u + 4.0 * (c - u)
    assert all(row[code] >= row.max() - 1e-4 for row, code in zip(mixed, codes, strict=True))
    assert len(set(codes)) > 2


def test_the_commands_run(converted: Converted, tmp_path: Path, capsys: Any) -> None:
    out, own = tmp_path / "out", str(converted.folder / "own")
    assert main(["generate", "--model", own, "2", "-o", str(out), "--n", "2"]) == 0
    assert PILImage.open(out / "001.png").size == (8, 8)
    capsys.readouterr()
    assert main(["generate", "--model", own, "a red apple", "-o", str(tmp_path / "no")]) == 2
    assert tells(capsys.readouterr().err, "... text: 'a red apple' ... 0 to 4")
    assert main(["caption", "--model", own, str(out / "000.png")]) == 2
    assert tells(capsys.readouterr().err, "... is a text ... 'llamagen'")
    assert main(["convert", str(converted.folder / "c2i_T_384.pt"), "--check"]) == 0
    assert "llamagen, " in capsys.readouterr().out


def test_classes_may_have_names(converted: Converted, tmp_path: Path) -> None:
    """A file of names beside the image tokenizer; the grid follows the name of the file."""
    folder = tmp_path / "vq"
    folder.mkdir()
    write_vq(folder / "vq_ds2_c2i.pt")
    names = ["tench", "goldfish", "great white shark", "hen", "ostrich"]
    (folder / "classes.txt").write_text("\n".join(names))
    source = tmp_path / "c2i_T_008.pt"
    torch.save(converted.tensors, source)  # as `--from-fsdp` reads them
    out = tmp_path / "own"
    assert main(["convert", str(source), "-o", str(out), "--tokenizer", str(folder)]) == 0
    weights = [load_file(one / "model.safetensors") for one in (out, converted.folder / "own")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    parts = cm3core.load(out).components
    assert parts.serializer.grid == GRID
    assert parts.serializer.prompt((Text(" Goldfish"), ImageHole())).tokens.tolist() == [1]
    assert parts.text_tokenizer.decode([2]) == "great white shark"


def _without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (
            lambda tensors: tensors.update({"cls_embedding.cap_proj.fc1.weight": torch.ones(2, 2)}),
            [],
            "is a text-conditional model: it reads features ... XL",
        ),
        (
            _without("cls_embedding.embedding_table.weight"),
            [],
            "is not a class-conditional LlamaGen: it lacks cls_embedding.embedding_table.weight",
        ),
        (_without("layers.1.ffn_norm.weight"), [], "tensors missing: layers.1.ffn_norm.weight"),
        (
            lambda tensors: tensors.update({"layers.0.attention.wo.weight": torch.ones(2, 2)}),
            [],
            "layers.0.attention.wo.weight is [2, 2 ... 128 ... 128",
        ),
        (
            lambda tensors: tensors.update({"norm.weight": torch.full((WIDTH,), torch.nan)}),
            [],
            "norm.weight contains non-finite values",
        ),
        (
            lambda _: None,
            ["--resolution"],
            "--resolution: is missing, and neither the tensors nor",
        ),
        (
            lambda _: None,
            ["--tokenizer"],
            "--tokenizer: is missing, but an image tokenizer is needed",
        ),
    ],
)
def test_wrong_files_are_refused(
    converted: Converted, tmp_path: Path, capsys: Any, change: Any, more: list[str], message: str
) -> None:
    tensors, source = dict(converted.tensors), tmp_path / "c2i_T.pt"
    change(tensors)
    torch.save({"model": tensors}, source)
    options = {
        "--tokenizer": str(converted.folder / "vq_ds2_c2i.pt"),
        "--resolution": "8",
    }
    given = [one for pair in options.items() if pair[0] not in more for one in pair]
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert tells(error, f"... {message}")
    assert re.search(r"\n  next: .", error)
    assert [path.name for path in tmp_path.iterdir()] == ["c2i_T.pt"]


def test_other_files_are_refused(converted: Converted, tmp_path: Path, capsys: Any) -> None:
    """An image tokenizer of another size; a folder with none; a file that would be executed."""

    class Hostile:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    source, out = str(converted.folder / "c2i_T_384.pt"), str(tmp_path / "out")
    (tmp_path / "none").mkdir()
    assert main(["convert", source, "-o", out, "--tokenizer", str(tmp_path / "none")]) == 2
    assert "none: has 0 files vq_*.pt, must have one" in capsys.readouterr().err
    torch.save({"model": Hostile()}, tmp_path / "hostile.pt")
    assert main(["convert", str(tmp_path / "hostile.pt"), "-o", out, "--tokenizer", "x"]) == 2
    said = capsys.readouterr()
    assert "executed" not in said.out
    assert "hostile.pt: " in said.err
