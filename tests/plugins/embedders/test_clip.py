"""`clip`: equal to transformers' and open_clip's on random weights, from every sort of file; what
it infers and refuses."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig as HuggingFaceConfig
from transformers import CLIPModel
from transformers import CLIPTokenizer as HuggingFaceTokenizer

import open_clip_oracle as oracle
from cm3core.errors import CheckpointError, RecipeError
from cm3core.testing.embedder import EmbedderContract
from cm3plugins.embedders import CLIPConfig
from cm3plugins.embedders.clip.archive import is_archive, read_archive
from cm3plugins.embedders.clip.checkpoint import read_checkpoint
from cm3plugins.embedders.clip.embedder import CLIP
from cm3plugins.embedders.clip.preprocessing import Preprocessing
from cm3plugins.embedders.clip.tokenizer import CLIPTokenizer, bundled_vocabulary, load_tokenizer
from cm3plugins.embedders.clip.towers import CLIPTowers, quick_gelu
from cm3plugins.embedders.weights import fill
from cm3plugins.trained.inert_pickle import follow

ASK = (
    "set embedder.quick_gelu=true (OpenAI's weights, and open_clip's models named -quickgelu) or "
    "embedder.quick_gelu=false "
    "(open_clip's others)"
)


def tiny(hidden_act: str = "quick_gelu", vocab_size: int = 49408) -> CLIPModel:
    """Two towers of different widths, random, as transformers has them."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "vocab_size": vocab_size,
        "hidden_act": hidden_act,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": hidden_act,
    }
    model = CLIPModel(
        HuggingFaceConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).eval()
    # transformers starts biases at zero, which would hide a lost one
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face writes it."""
    path = tmp_path_factory.mktemp("clip")
    tiny().save_pretrained(path)
    return path


def features(output: Any) -> np.ndarray:
    """transformers 5 wraps what 4 returned."""
    vectors = output if isinstance(output, Tensor) else output.pooler_output
    return (vectors / vectors.norm(dim=1, keepdim=True)).detach().numpy()


def example_pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for height, width in ((32, 32), (40, 60), (90, 44), (7, 5))
    ]


def open_clip_names(folder: Path) -> dict[str, Tensor]:
    """The tensors of the tiny model under OpenAI's names."""
    return dict(read_checkpoint(folder).tensors)


class TestCLIP(EmbedderContract):
    def make(self) -> CLIP:
        checkpoint = read_checkpoint(self.path)
        return CLIP(
            checkpoint, load_tokenizer(self.path, checkpoint.sizes.context_length), "clip-test"
        )

    @pytest.fixture(autouse=True)
    def _path(self, folder: Path) -> None:
        type(self).path = folder


# ---- equal to others


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_vectors_equal_transformers(tmp_path, hidden_act):
    model = tiny(hidden_act)
    model.save_pretrained(tmp_path)
    ours, texts = (
        CLIPConfig(path=str(tmp_path), batch_size=2).build(),
        ["a photo of a cat", "", "zwölf grüne Äpfel!", "dog"],
    )
    ids, last = load_tokenizer(tmp_path, 20).encode(texts)
    # OpenAI's ids, written down by hand
    assert ids[0].tolist()[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    # transformers fills up with the end token
    padded = torch.where(torch.arange(ids.shape[1]) > last[:, None], 49407, ids)
    np.testing.assert_allclose(
        ours.embed_texts(texts), features(model.get_text_features(input_ids=padded)), atol=1e-5
    )
    pixels = torch.stack([Preprocessing(32)(picture) for picture in example_pictures()])
    expected = features(model.get_image_features(pixel_values=pixels))
    np.testing.assert_allclose(ours.embed_images(example_pictures()), expected, atol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_vectors_equal_open_clips(tmp_path, quick):
    """Of the same seeded weights; see the fixture's head. The tokenizer is left out: the tiny
    vocabulary has none."""
    recorded = json.loads(oracle.FILE.read_text())
    save_file(oracle.seeded(recorded["shapes"]), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": oracle.MODEL | {"quick_gelu": quick}})
    )
    checkpoint = read_checkpoint(tmp_path)
    # as the config says, not width / 64
    assert (checkpoint.sizes.vision.num_heads, checkpoint.sizes.text.num_heads) == (2, 3)
    towers = CLIPTowers(checkpoint.sizes)
    fill(towers, checkpoint.tensors, checkpoint.path, "")
    expected, ids = recorded["quick_gelu" if quick else "gelu"], torch.tensor(oracle.IDS)
    with torch.inference_mode():
        np.testing.assert_allclose(
            towers.visual(oracle.pixels()), expected["images"], atol=2e-4, rtol=1e-4
        )
        np.testing.assert_allclose(
            towers.encode_texts(ids, ids.argmax(1)), expected["texts"], atol=2e-4, rtol=1e-4
        )
    other = recorded["gelu" if quick else "quick_gelu"]
    # so a wrong activation would be seen
    assert np.abs(np.array(other["images"]) - expected["images"]).max() > 0.01


@pytest.fixture(scope="module")
def both() -> tuple[CLIPTokenizer, Any]:
    """Our tokenizer, and transformers' from the same vocabulary."""
    vocabulary, merges = bundled_vocabulary()
    return load_tokenizer(Path("nowhere"), 77), HuggingFaceTokenizer(
        vocab=vocabulary, merges=merges
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40).filter(lambda text: "<|" not in text), min_size=1, max_size=4))
def test_ids_equal_transformers(both, texts):
    ours, theirs = both
    ids, last = ours.encode(texts)
    for row, end, text in zip(ids.tolist(), last.tolist(), texts, strict=True):
        assert row[: end + 1] == theirs(text, truncation=True, max_length=77)["input_ids"]


def test_the_bundled_vocabulary_is_openais():
    vocabulary, merges = bundled_vocabulary()
    assert (len(vocabulary), len(merges)) == (49408, 48894)
    ids = {
        token: vocabulary[token]
        for token in ("!", "a</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>")
    }
    assert ids == {
        "!": 0,
        "a</w>": 320,
        "cat</w>": 2368,
        "<|startoftext|>": 49406,
        "<|endoftext|>": 49407,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 99))
def test_pictures_are_scaled_and_cut_as_torchvision_does(height, width, squash, seed):
    """Resize of the short side and a central crop; what is longer than eight times its short side
    is cut before."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = Preprocessing(16, squash=squash).square(picture)
    scaled = (
        (16, 16)
        if squash
        else (int(16 * width / min(height, width)), int(16 * height / min(height, width)))
    )
    whole = Pillow.fromarray(picture).resize(scaled, Pillow.Resampling.BICUBIC)
    left, top = round((scaled[0] - 16) / 2), round((scaled[1] - 16) / 2)
    if squash or max(height, width) <= 8 * min(height, width):
        assert np.array_equal(ours, np.array(whole.crop((left, top, left + 16, top + 16))))
    assert ours.shape == (16, 16, 3)


def test_a_very_long_picture_shows_its_middle():
    """Scaled whole, it would be 16 x 1,600,000 pixels."""
    picture = np.zeros((2, 200_000, 3), np.uint8)
    picture[:, 100_000 - 8 : 100_000 + 8] = 255
    assert (Preprocessing(16).square(picture) == 255).all()


def test_preprocessing_by_hand():
    white = Preprocessing(4)(np.full((4, 4, 3), 255, np.uint8))
    assert white[:, 0, 0].tolist() == pytest.approx(
        [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    )


def test_quick_gelu_by_hand():
    assert quick_gelu(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(
        [0.0, 1 / (1 + np.exp(-1.702))]
    )


# ---- every sort of file holds the same network


def scripted(tensors: dict[str, Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript module with these parameters, in submodules by their names, as OpenAI's
    archives are."""

    class Node(nn.Module):
        pass

    root = Node()
    for name, tensor in tensors.items():
        node, (*path, leaf) = root, name.split(".")
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return torch.jit.script(root)


def written(kind: str, tensors: dict[str, Tensor], path: Path) -> Path:
    """A file of weights of this kind."""
    if kind == "TorchScript":
        torch.jit.save(scripted(tensors | {"logit_scale": torch.tensor(4.6)}), path / "ViT.pt")
        return path / "ViT.pt"
    if kind == "safetensors":
        save_file(tensors, path / "open_clip_model.safetensors")
    elif kind == "bin":
        torch.save(tensors, path / "open_clip_pytorch_model.bin")
    elif kind == "training":
        state = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "state_dict": state}, path / "epoch_3.pt")
    else:
        own = [name for name in tensors if not name.startswith("visual.")]
        renamed = {
            f"text.{name}" if name in own else name: tensor for name, tensor in tensors.items()
        }
        save_file(renamed, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    "kind", ["TorchScript", "safetensors", "bin", "training", "CustomTextCLIP"]
)
def test_the_same_network_from_every_file(folder, tmp_path, kind):
    tensors = open_clip_names(folder)
    path = written(kind, tensors, tmp_path)
    found = read_checkpoint(path, quick_gelu=True)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert (
        found.sizes.resolution,
        found.sizes.patch,
        found.sizes.context_length,
        found.sizes.dimension,
    ) == (32, 8, 20, 24)
    assert (
        found.sizes.vision.num_layers,
        found.sizes.vision.mlp_width,
        found.sizes.text.num_layers,
    ) == (3, 80, 2)


def test_openais_archives_are_read_in_half_and_known_by_their_form(folder, tmp_path):
    path = written(
        "TorchScript",
        {name: tensor.half() for name, tensor in open_clip_names(folder).items()},
        tmp_path,
    )
    assert is_archive(path)
    assert not is_archive(folder / "model.safetensors")
    found = read_checkpoint(path)
    assert (
        found.summary
        == "OpenAI's CLIP with patches of 8 pixels, 32 px, 24 dimensions, QuickGELU (OpenAI's archive)"
    )
    assert found.sizes.vision.activation == found.sizes.text.activation == "quick_gelu"
    assert found.tensors["visual.proj"].dtype == torch.float32
    assert CLIPConfig(path=str(path)).build().embed_texts(["a dog"]).shape == (1, 24)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-c](\.[a-c]){0,2}", fullmatch=True),
        st.lists(st.integers(1, 3), max_size=3),
        min_size=1,
    )
)
def test_an_archives_tensors_come_back(tmp_path_factory, shapes):
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if not any(other.startswith(f"{name}.") for other in shapes)
    }
    path = tmp_path_factory.mktemp("archive") / "a.pt"
    tensors = {
        name: torch.randn(shape).to(torch.float16 if len(shape) % 2 else torch.float32)
        for name, shape in shapes.items()
    }
    torch.jit.save(scripted(tensors), path)
    found = read_archive(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_an_archive_is_called(tmp_path):
    pickled = pickle.dumps(Evil(tmp_path / "made"), protocol=2)
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", pickled)
        archive.writestr("evil/constants.pkl", pickled)
    assert follow(pickled).arguments == (str(tmp_path / "made"),)
    with pytest.raises(
        CheckpointError,
        match=r"is not a CLIP with a vision transformer \(visual.conv1.weight is missing\)",
    ):
        read_checkpoint(tmp_path / "evil.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.bin")
    (tmp_path / "evil.bin").write_bytes(pickled)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / "evil.bin")
    assert str(refused.value) == (
        f"{tmp_path / 'evil.bin'}: does not hold plain tensors (UnpicklingError)\n"
        "  next: give the weights alone; files that run code when loaded are rejected"
    )
    assert not (tmp_path / "made").exists()


def test_a_damaged_archive_is_told(folder, tmp_path):
    path = written("TorchScript", open_clip_names(folder), tmp_path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "short.pt", "w") as short:
        for entry in archive.infolist():
            content = archive.read(entry)
            short.writestr(
                entry.filename, content[:-4] if entry.filename.endswith("data/0") else content
            )
    with pytest.raises(CheckpointError, match="is not a readable TorchScript archive") as refused:
        read_checkpoint(tmp_path / "short.pt")
    assert refused.value.next_step == "download it again, or give the weights as safetensors"


# ---- the activation


def config(path: Path, name: str, content: dict[str, Any]) -> None:
    (path / name).write_text(json.dumps(content))


def test_the_activation_is_inferred_told_and_overruled(folder, tmp_path):
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError) as unknown:
        read_checkpoint(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    assert (
        str(unknown.value)
        == f"{weights}: nothing states whether its activation is QuickGELU\n  next: {ASK}"
    )
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
    assert str(refused.value) == (
        f"{weights}: open_clip_config.json states gelu but config.json states quick_gelu\n"
        "  next: set embedder.quick_gelu=true or embedder.quick_gelu=false"
    )
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
    assert str(refused.value) == (
        f"{tmp_path / 'open_clip_config.json'}: asks for 'longest' scaling with 'bicubic'\n"
        "  next: only shortest and squash with bicubic and bilinear are done here"
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
    assert refused.value.next_step == "copy it again, or remove it: without one OpenAI's is used"


def test_long_texts_are_cut_and_told_once(folder, caplog):
    embedder = CLIPConfig(path=str(folder)).build()
    long = "apple " * 30
    with caplog.at_level("WARNING"):
        cut = embedder.embed_texts([long, "a dog"])
        embedder.embed_texts([long])
    assert [record.getMessage() for record in caplog.records] == [
        "clip reads 18 tokens of a text, and one has 30: such texts are truncated (reported once)"
    ]
    np.testing.assert_allclose(cut[0], embedder.embed_texts(["apple " * 18])[0], atol=1e-5)


# ---- what is refused


def test_wrong_paths_and_folders(tmp_path):
    with pytest.raises(CheckpointError) as absent:
        CLIPConfig(path=str(tmp_path / "none")).build()
    assert (
        str(absent.value)
        == f"{tmp_path / 'none'}: there is no such file or folder\n  next: correct embedder.path"
    )
    for name in ("a.pt", "b.bin"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as several:
        read_checkpoint(tmp_path)
    assert str(several.value) == (
        f"{tmp_path}: files of weights in it: a.pt, b.bin\n"
        "  next: give the file itself, or name it model.safetensors"
    )
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(CheckpointError, match="its weights are in several files"):
        read_checkpoint(tmp_path)
    with pytest.raises(RecipeError) as batch:
        CLIPConfig(path="x", batch_size=0).check()
    assert (
        str(batch.value)
        == "embedder.batch_size: is 0, must be at least 1\n  next: correct the value"
    )


def test_what_is_no_clip_of_ours(folder, tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file({"visual.layer1.0.conv1.weight": torch.zeros(2)} | open_clip_names(folder), path)
    with pytest.raises(CheckpointError) as resnet:
        read_checkpoint(path, quick_gelu=True)
    assert str(resnet.value) == (
        f"{path}: is not a CLIP with a vision transformer (its picture tower is not a vision "
        "transformer)\n"
        "  next: give ViT-B/32, B/16, L/14 or a relative; ResNets, and towers of timm or of a "
        "language model, are not read"
    )
    fewer = open_clip_names(folder)
    del fewer["transformer.resblocks.1.attn.out_proj.bias"]
    save_file(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"holds other tensors than its sizes imply \(.*resblocks.1.attn.out_proj.bias",
    ):
        CLIP.load(tmp_path / "fewer.safetensors", quick_gelu=True)
    save_file(open_clip_names(folder), tmp_path / "open_clip_model.safetensors")
    config(
        tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"attentional_pool": True}}}
    )
    with pytest.raises(CheckpointError, match=r"asks for vision_cfg.attentional_pool"):
        read_checkpoint(tmp_path)
    config(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"layers": 12}}})
    with pytest.raises(CheckpointError, match=r"vision_cfg.layers is 12, and the weights have 3"):
        read_checkpoint(tmp_path)


def test_weights_that_are_no_numbers(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path, quick_gelu=True)
    assert str(refused.value) == (
        f"{tmp_path / 'model.safetensors'}: visual.proj holds NaN or infinite numbers\n"
        "  next: use weights of a run that did not diverge"
    )


def test_a_tokenizer_of_another_model(tmp_path):
    tiny(vocab_size=1000).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        CLIPConfig(path=str(tmp_path)).build()
    assert str(refused.value) == (
        f"{tmp_path / 'model.safetensors'}: has 1000 text ids, but its tokenizer has 49408\n"
        "  next: put the tokenizer of these weights next to them"
    )


def test_configs_of_other_models(folder, tmp_path):
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    vision = content["vision_config"] | {"layer_norm_eps": 1e-6}
    layers = content["text_config"] | {"num_hidden_layers": 9}
    for change, message in (
        ({"model_type": "siglip"}, "is of a model 'siglip'"),
        (
            {"text_config": content["text_config"] | {"hidden_act": "relu"}},
            "asks for the activation 'relu'",
        ),
        ({"vision_config": vision}, "asks for layer_norm_eps 1e-06"),
        ({"text_config": layers}, r"text_config.num_hidden_layers is 9, and the weights have 2"),
    ):
        config(tmp_path, "config.json", content | change)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, not an object"):
        read_checkpoint(tmp_path)
