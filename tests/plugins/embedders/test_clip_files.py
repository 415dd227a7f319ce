"""What `clip` infers from files beside its weights, and what it refuses."""

from __future__ import annotations

import json
import re
import zipfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer as HuggingFaceTokenizer

from clip_models import ASK, open_clip_names, tiny, written
from cm3core.errors import CheckpointError, RecipeError
from cm3plugins.embedders import CLIPConfig
from cm3plugins.embedders.clip.checkpoint import read_checkpoint
from cm3plugins.embedders.clip.configs import Preprocessing
from cm3plugins.embedders.clip.embedder import CLIP
from cm3plugins.embedders.clip.tokenizer import bundled_vocabulary, load_tokenizer
from cm3plugins.embedders.clip.towers import quick_gelu
from messages import tells

# ---- the activation


def config(path: Path, name: str, content: dict[str, Any]) -> None:
    (path / name).write_text(json.dumps(content))


def test_the_activation_is_inferred_told_and_overruled(folder, tmp_path):
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError) as unknown:
        read_checkpoint(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    assert tells(unknown.value, f"{weights}: no config states whether ... QuickGELU ... {ASK}")
    assert read_checkpoint(tmp_path, quick_gelu=False).summary.endswith("GELU (set in the recipe)")
    config(
        tmp_path,
        "open_clip_config.json",
        {"model_cfg": {"embed_dim": 24, "text_cfg": {"heads": 4}}},
    )
    assert read_checkpoint(tmp_path).sizes.text.activation == "gelu"  # open_clip's default
    config(
        tmp_path,
        "open_clip_config.json",
        {"model_cfg": {"embed_dim": 24, "quick_gelu": True, "text_cfg": {"heads": 4}}},
    )
    assert read_checkpoint(tmp_path).summary.endswith("QuickGELU (open_clip_config.json)")
    assert read_checkpoint(tmp_path, quick_gelu=False).sizes.vision.activation == "gelu"


def test_two_that_say_different_things_are_asked_about(folder, tmp_path):
    """mlfoundations/open_clip#771: OpenAI's weights beside a config that does not say QuickGELU."""
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    config(
        tmp_path,
        "open_clip_config.json",
        {"model_cfg": {"embed_dim": 24, "text_cfg": {"heads": 4}}},
    )
    config(tmp_path, "config.json", json.loads((folder / "config.json").read_text()))
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    assert tells(refused.value, f"{weights}: open_clip_config.json states gelu ... config.json")
    archive = written("TorchScript", open_clip_names(folder), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"OpenAI's archive states quick_gelu but open_clip_config.json states gelu",
    ):
        read_checkpoint(archive)


def test_the_activation_reaches_every_block_and_the_fingerprint(folder):
    one, other = (CLIPConfig(path=str(folder), quick_gelu=quick).build() for quick in (True, False))
    for embedder, activation in ((one, quick_gelu), (other, torch.nn.functional.gelu)):
        blocks = [
            *embedder._towers.visual.transformer.resblocks,
            *embedder._towers.transformer.resblocks,
        ]
        assert len(blocks) == 5
        assert all(block.mlp.activation is activation for block in blocks)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == CLIPConfig(path=str(folder / "model.safetensors")).build().fingerprint
    assert not np.allclose(one.embed_texts(["a dog"]), other.embed_texts(["a dog"]), atol=1e-3)


# ---- preprocessing and tokenizer beside the weights


def test_preprocessing_stands_beside_the_weights(folder, tmp_path):
    model = {"model_cfg": {"embed_dim": 24, "text_cfg": {"heads": 4}}}
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    config(
        tmp_path,
        "open_clip_config.json",
        model
        | {
            "preprocess_cfg": {
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.25],
                "interpolation": "bilinear",
                "resize_mode": "squash",
            }
        },
    )
    assert read_checkpoint(tmp_path).preprocessing == Preprocessing(
        32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.25), "bilinear", True
    )
    config(
        tmp_path, "open_clip_config.json", model | {"preprocess_cfg": {"resize_mode": "longest"}}
    )
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path)
    assert tells(
        refused.value, f"{tmp_path / 'open_clip_config.json'}: asks for 'longest' ... 'bicubic'"
    )
    tiny().save_pretrained(tmp_path / "hf")
    config(
        tmp_path / "hf",
        "preprocessor_config.json",
        {"image_mean": [0.1, 0.2, 0.3], "resample": 2, "size": {"shortest_edge": 32}},
    )
    assert read_checkpoint(tmp_path / "hf").preprocessing == Preprocessing(
        32, (0.1, 0.2, 0.3), interpolation="bilinear"
    )


def test_a_tokenizer_beside_the_weights_is_taken(folder, tmp_path):
    """`tokenizer.json`, and `vocab.json` with `merges.txt`, as transformers writes them, give the
    ids of the bundled one."""
    vocabulary, merges = bundled_vocabulary()
    HuggingFaceTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path / "whole")
    (tmp_path / "two").mkdir()
    config(tmp_path / "two", "vocab.json", vocabulary)
    (tmp_path / "two" / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    texts = ["A red apple, noto style", "été 猫"]
    expected = load_tokenizer(tmp_path / "none", 20).encode(texts)
    for name in ("whole", "two"):
        assert all(
            torch.equal(*pair)
            for pair in zip(
                load_tokenizer(tmp_path / name, 20).encode(texts), expected, strict=True
            )
        )
    (tmp_path / "whole" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a readable tokenizer") as refused:
        load_tokenizer(tmp_path / "whole", 20)
    assert refused.value.next_step == "copy it again, or remove it: OpenAI's is then used"


def test_long_texts_are_cut_and_told_once(folder, caplog):
    embedder = CLIPConfig(path=str(folder)).build()
    long = "apple " * 30
    with caplog.at_level("WARNING"):
        cut = embedder.embed_texts([long, "a dog"])
        embedder.embed_texts([long])
    assert [record.getMessage() for record in caplog.records] == [
        "clip reads at most 18 tokens of a text, and one has 30: longer texts are truncated (reported once)"
    ]
    np.testing.assert_allclose(cut[0], embedder.embed_texts(["apple " * 18])[0], atol=1e-5)


# ---- what is refused


def test_wrong_paths_and_folders(tmp_path):
    with pytest.raises(CheckpointError) as absent:
        CLIPConfig(path=str(tmp_path / "none")).build()
    assert tells(absent.value, f"{tmp_path / 'none'}: there is no such file or ... embedder.path")
    for name in ("a.pt", "b.bin"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as several:
        read_checkpoint(tmp_path)
    assert tells(
        several.value, f"{tmp_path}: holds several ... a.pt ... b.bin ... model.safetensors"
    )
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(CheckpointError, match="its weights are split over several files"):
        read_checkpoint(tmp_path)
    with pytest.raises(RecipeError) as batch:
        CLIPConfig(path="x", batch_size=0).check()
    assert tells(batch.value, "embedder.batch_size: is 0, must ... least 1")


def test_what_is_no_clip_of_ours(folder, tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file({"visual.layer1.0.conv1.weight": torch.zeros(2)} | open_clip_names(folder), path)
    with pytest.raises(CheckpointError) as resnet:
        read_checkpoint(path, quick_gelu=True)
    assert tells(resnet.value, f"{path}: is not a CLIP ... ViT-B/32 ... B/16")
    fewer = open_clip_names(folder)
    del fewer["transformer.resblocks.1.attn.out_proj.bias"]
    save_file(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"its tensors don't match its sizes \(.*resblocks.1.attn.out_proj.bias",
    ):
        CLIP.load(tmp_path / "fewer.safetensors", quick_gelu=True)
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    config(
        tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"attentional_pool": True}}}
    )
    with pytest.raises(CheckpointError, match=r"asks for vision_cfg.attentional_pool"):
        read_checkpoint(tmp_path)
    config(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"layers": 12}}})
    with pytest.raises(CheckpointError, match=r"vision_cfg.layers is 12, but the weights have 3"):
        read_checkpoint(tmp_path)


def test_weights_that_are_no_numbers(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path, quick_gelu=True)
    assert tells(refused.value, f"{tmp_path / 'model.safetensors'}: visual.proj contains NaN")


def test_a_tokenizer_of_another_model(tmp_path):
    tiny(vocab_size=1000).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        CLIPConfig(path=str(tmp_path)).build()
    assert tells(refused.value, f"{tmp_path / 'model.safetensors'}: has 1000 text ... has 49408")


def test_configs_of_other_models(folder, tmp_path):
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    vision = content["vision_config"] | {"layer_norm_eps": 1e-6}
    layers = content["text_config"] | {"num_hidden_layers": 9}
    for change, message in (
        ({"model_type": "siglip"}, "describes a model of type 'siglip'"),
        (
            {"text_config": content["text_config"] | {"hidden_act": "relu"}},
            "asks for the activation 'relu'",
        ),
        ({"vision_config": vision}, "asks for layer_norm_eps 1e-06"),
        ({"text_config": layers}, r"text_config.num_hidden_layers is 9, but the weights have 2"),
    ):
        config(tmp_path, "config.json", content | change)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, not an object"):
        read_checkpoint(tmp_path)


# ---- files that hold no CLIP: each is told, whatever its bytes make a reader raise


def _zipped(path: Path, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"x/{name}.pkl", content)
    return path


def _saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_files_without_weights(folder: Path, tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    whole = _saved(tmp_path / "whole.pt", open_clip_names(folder)).read_bytes()
    damaged = bytearray(_zipped(tmp_path / "z.pt", constants=b"", data=b"\x80\x02}.").read_bytes())
    record, directory = damaged.rfind(b"PK\x03\x04"), damaged.rfind(b"PK\x01\x02")
    damaged[record + 8] = damaged[directory + 10] = 77  # a way of compression that there isn't
    for path, cause in (
        (tmp_path / "empty.safetensors", "holds no weights"),
        (_saved(tmp_path / "words.pt", {"a": "b"}), "holds no weights"),
        (_saved(tmp_path / "list.pt", [1]), "holds a list instead of named weights"),
        (_bytes(tmp_path / "text.pt", b"hello"), r"does not hold plain tensors \(KeyError\)"),
        (_bytes(tmp_path / "cut.pt", whole[: len(whole) // 2]), "does not hold plain tensors"),
        (_zipped(tmp_path / "none.pt", constants=b""), "is not a readable TorchScript archive"),
        (_bytes(tmp_path / "way.pt", bytes(damaged)), "NotImplementedError: That compression"),
    ):
        with pytest.raises(CheckpointError, match=cause) as refused:
            read_checkpoint(path, quick_gelu=True)
        assert refused.value.place == str(path)
        assert refused.value.next_step
    with pytest.raises(CheckpointError) as empty:
        read_checkpoint(tmp_path / "empty.safetensors")
    assert tells(
        empty.value,
        f"{tmp_path / 'empty.safetensors'}: holds no weights ... embedder.path ... CLIP",
    )


@pytest.mark.slow
def test_tensors_of_other_shapes(folder: Path, tmp_path: Path) -> None:
    """Sizes are read from shapes: none may end in an `IndexError` or a division by zero. Each tensor has one of them."""
    path = tmp_path / "model.safetensors"
    shapes = [(), (0,), (0, 0, 0, 0), (1, 1, 1, 1, 1)]
    for tensors in (open_clip_names(folder), load_file(folder / "model.safetensors")):
        names = [one for one in tensors if one != "logit_scale" and not re.search(r"\.[12]\.", one)]
        for name, shape in zip(names, cycle(shapes), strict=False):
            save_file(tensors | {name: torch.zeros(shape)}, path)
            with pytest.raises(CheckpointError):
                CLIP.load(path, quick_gelu=True)


def test_tensors_that_are_not_plain_numbers(folder: Path, tmp_path: Path) -> None:
    ours = open_clip_names(folder)
    name = "token_embedding.weight"
    for wrong, cause in (
        (ours[name].to_sparse(), rf"{name} is not a plain tensor \(torch.sparse_coo, on cpu\)"),
        (ours[name].to("meta"), rf"{name} is not a plain tensor \(torch.strided, on meta\)"),
        (
            ours[name].to(torch.complex64),
            f"{name} has the dtype complex64, not a floating-point one",
        ),
        (ours[name].to(torch.int8), f"{name} has the dtype int8, not a floating-point one"),
    ):
        with pytest.raises(CheckpointError, match=cause):
            read_checkpoint(_saved(tmp_path / "w.pt", ours | {name: wrong}), quick_gelu=True)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (DEEP, r"can't be read \(maximum recursion depth"),
        ('{"model_cfg": 1}', "model_cfg is a int, not an object"),
        ('{"model_cfg": {"text_cfg": []}}', "text_cfg is a list, not an object"),
        ('{"model_cfg": {"text_cfg": {"heads": -4}}}', "heads is -4, not a whole number of 1"),
        ('{"model_cfg": {"text_cfg": {"heads": "4"}}}', "heads is '4', not a whole number of 1"),
        ('{"preprocess_cfg": [1]}', "preprocess_cfg is a list, not an object"),
        ('{"preprocess_cfg": {"mean": [1, 2]}}', r"its mean is \[1, 2\], not three numbers$"),
        ('{"preprocess_cfg": {"std": [1, 0, 1]}}', "its std is .*, not three numbers above 0"),
    ],
    ids=range(8),
)
def test_configs_with_wrong_values(content: str, cause: str, folder: Path, tmp_path: Path) -> None:
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    values = content
    if "preprocess_cfg" in content:
        good = '{"model_cfg": {"embed_dim": 24, "text_cfg": {"heads": 4}}, '
        values = good + content.removeprefix("{")
    (tmp_path / "open_clip_config.json").write_text(values)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path)
    assert refused.value.place == str(tmp_path / "open_clip_config.json")
    assert re.search(cause, refused.value.cause)
