"""`cm3 convert` of GLM-Image's first stage: random weights in transformers' format draw the same codes here as in
transformers, and pictures have the same codes; what its second stage takes is diffusers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, GlmImageProcessor

from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3core.vocab import Vocabulary
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3published.convert.glm_image import decoder_tensors, facts_of
from cm3published.decoders import GlmImageDecoderConfig
from cm3published.glm_grids import grids_of, prior_token_ids
from cm3published.image_tokenizers.glm_config import GlmImageVQConfig
from cm3published.image_tokenizers.glm_image import GlmImageTokenizer, empty_network
from cm3run.generation.engine import Request
from messages import tells
from tiny_glm_image import END, FIRST_TEXT, GRIDS, NUM_CODES, SIZE, START, Converted, converted

NUM = sum(rows * columns for rows, columns in GRIDS)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("glm_image"))


def prompt_of(both: Converted, text: str) -> list[int]:
    """By `GlmImageProcessor`: the text, and both sizes as text between `<sop>` and `<eop>`."""
    sizes = [f"<sop>{rows} {columns}<eop>" for rows, columns in GRIDS[::-1]]
    whole = f"{text}{''.join(sizes)}<|dit_token_{START}|>"
    ids: list[int] = both.tokenizer.encode(whole).ids
    return ids


def grids_THW() -> Tensor:
    """As `GlmImageProcessor` gives them: the picture, then its preview."""
    return torch.tensor([[1, *grid] for grid in GRIDS[::-1]])


@pytest.mark.parametrize("size", [(1024, 1024), (1152, 768), (512, 2048), (32, 64)])
def test_sizes_are_the_processors(size: tuple[int, int]) -> None:
    rows, columns, *preview = GlmImageProcessor._get_target_shape(None, *size)
    assert grids_of(*size) == (tuple(preview), (rows, columns))


def test_prompts_are_the_processors(both: Converted) -> None:
    prompt = both.model.components.serializer.prompt((Text("a red apple"), ImageHole()))
    assert prompt.tokens.tolist() == prompt_of(both, "a red apple")
    assert len(prompt.holes[0].cells) == NUM


def test_greedy_codes_are_transformers(both: Converted) -> None:
    """Its `generate` draws the ids of both grids, if other ids can't be drawn."""
    sampler = both.model.sampler_config("top_p", temperature=0.0).build()
    [done] = both.model.engine.complete(
        [Request((Text("a red apple"), ImageHole()), sampler=sampler)]
    )
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    prompt = torch.tensor([prompt_of(both, "a red apple")])
    found = both.theirs.generate(
        input_ids=prompt,
        image_grid_thw=grids_THW(),
        images_per_sample=torch.tensor([2]),
        max_new_tokens=NUM,
        do_sample=False,
        suppress_tokens=list(range(NUM_CODES, FIRST_TEXT)),
    )
    expected = found[0, prompt.shape[1] :].tolist()
    assert len(set(expected)) > 3
    assert drawn.codes.tolist() == expected


def test_logits_are_transformers(both: Converted) -> None:
    """Of a whole sequence at once, with the positions that transformers has while it draws; the last token ends it."""
    codes = np.random.default_rng(1).integers(0, NUM_CODES, NUM).astype(np.int32)
    serializer = both.model.components.serializer
    sequence = serializer.sequence((Text("a red apple"), Codes(codes, (1, NUM))))
    start = len(prompt_of(both, "a red apple"))
    assert sequence.tokens[:start].tolist() == prompt_of(both, "a red apple")
    assert sequence.tokens[start:].tolist() == [*codes, END]
    ids = torch.from_numpy(sequence.tokens[:-1]).long()[None]
    model = both.theirs.model
    model.get_rope_index(ids[:, :start], grids_THW(), torch.tensor([2]))
    later = model._cached_decode_position_ids[0, :, :NUM]
    positions = torch.cat([torch.arange(start).expand(3, -1), later], dim=1)[:, None]
    with torch.no_grad():
        expected = both.theirs(input_ids=ids, position_ids=positions).logits[0]
        decoder = both.model.components.decoder
        cells = torch.from_numpy(sequence.cells[:-1]).long()[None]
        hidden = decoder.module.eval()(ids, cells_BT=cells)[0]
        own = decoder.logits(hidden)
    assert (own[:, :FIRST_TEXT] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not own[:, FIRST_TEXT:].any()


def test_codes_of_pictures_are_transformers(both: Converted) -> None:
    """Of the same pixels: `GlmImageVisionModel` and `GlmImageVQVAE`; its places are interpolated to the grid."""
    tokenizer = both.model.components.image_tokenizer
    assert isinstance(tokenizer, GlmImageTokenizer)
    pixels = np.random.default_rng(2).integers(0, 256, (1, 32, 64, 3), dtype=np.uint8)
    codes, place = tokenizer.encode(pixels)[0], 0
    levels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    for rows, columns in GRIDS:
        resized = tokenizer.network.resized(levels, (rows, columns))
        patches = resized[0].reshape(3, rows, 16, columns, 16).permute(1, 3, 0, 2, 4)
        grid = torch.tensor([[1, rows, columns]])
        with torch.no_grad():
            features = both.theirs.model.get_image_features(patches.reshape(-1, 768), grid)
            expected = both.theirs.model.get_image_tokens(features.pooler_output)
        assert codes[place : place + rows * columns].tolist() == expected.tolist()
        place += rows * columns
    assert len(set(codes.tolist())) > 3


def test_the_second_stage_gets_what_diffusers_passes(both: Converted) -> None:
    from diffusers.pipelines.glm_image.pipeline_glm_image import GlmImagePipeline

    drawn = both.model.generate("a red apple", num_images=1, seed=1)[0]
    own = prior_token_ids(drawn.codes, 32, 64)
    number, offset, rows, columns = GlmImagePipeline._compute_generation_params(grids_THW(), True)
    assert number == NUM + 1
    outputs = torch.tensor([[7, 7, *drawn.codes.codes.tolist(), END]])
    picture = GlmImagePipeline._extract_large_image_tokens(outputs, 2, offset, rows * columns)
    expected = GlmImagePipeline._upsample_token_ids(picture, rows, columns)
    assert own.tolist() == expected.tolist()
    assert (own.dtype, own.shape) == (np.int64, (1, 8))


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    """A picture file has squares of 32 pixels in the colours of the picture's codes."""
    config = both.model.components.recipe.sampler
    assert isinstance(config, TopPSamplerConfig)
    assert (config.temperature, config.top_p) == (0.9, 0.75)
    out, own = tmp_path / "pictures", str(both.folder / "own")
    assert main(["generate", "--model", own, "a red apple", "-o", str(out), "--seed", "1"]) == 0
    shown = np.asarray(PILImage.open(out / "000.png"))
    assert shown.shape == (32, 64, 3)
    assert len({tuple(pixel) for pixel in shown[:, :32].reshape(-1, 3)}) == 1
    [drawn] = both.model.generate("a red apple", num_images=1, seed=1)
    tokenizer = both.model.components.image_tokenizer
    assert isinstance(tokenizer, GlmImageTokenizer)
    colours = ((tokenizer.network.colours() + 1) * 127.5).round().numpy()
    assert shown[5, [0, 40]].tolist() == colours[drawn.codes.codes[-2:]].tolist()
    stage = str(both.folder / "GLM-Image" / "vision_language_encoder")
    assert main(["convert", stage, "--check"]) == 0
    assert "GLM-Image, " in capsys.readouterr().out
    assert main(["caption", "--model", own, str(out / "000.png")]) == 2
    assert "can't generate text" in capsys.readouterr().err


def _edit_config(folder: Path, part: str, **changes: Any) -> None:
    path = folder / "vision_language_encoder" / "config.json"
    values = json.loads(path.read_text())
    (values[part] if part else values).update(changes)
    path.write_text(json.dumps(values))


def _edit_tensors(folder: Path, name: str, tensor: Tensor | None) -> None:
    path = folder / "vision_language_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors if tensor is None else tensors | {name: tensor}, path)


ROPE = {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (
            lambda f: _edit_config(f, "text_config", rope_parameters=ROPE),
            [],
            "mrope_section is [1, 1, 2], must be three parts of 3",
        ),
        (
            lambda f: _edit_config(f, "text_config", intermediate_size=49),
            [],
            "down_proj.weight is [32, 48], but the config implies [32, 49]",
        ),
        (
            lambda f: _edit_tensors(f, "lm_head.weight", None),
            [],
            "tensors missing: lm_head.weight",
        ),
        (
            lambda f: _edit_tensors(f, "model.visual.blocks.1.norm2.bias", None),
            [],
            "image tokenizer of GLM-Image (visual.blocks.1.norm2.bias is missing)",
        ),
        (
            lambda f: _edit_tensors(
                f, "model.visual.patch_embed.proj.bias", torch.full((24,), torch.nan)
            ),
            [],
            "model.visual.patch_embed.proj.bias contains non-finite values",
        ),
        (
            lambda f: (f / "processor" / "tokenizer.json").unlink(),
            [],
            "processor: has no text_tokenizer.json or tokenizer.json",
        ),
        (
            lambda f: (f / "processor" / "tokenizer.json").write_text('{"added_tokens": []}'),
            [],
            "tokenizer.json: has no token <|endoftext|>",
        ),
        (lambda f: None, ["--to", "hf"], "--to hf: does not work with GLM-Image"),
        (lambda f: None, ["--chat"], "--chat: does not work with GLM-Image"),
        (
            lambda f: None,
            ["--resolution", "1024"],
            "--resolution: pictures of 1 x 1280 codes take 1,295 tokens, but ... is 512",
        ),
        (
            lambda f: None,
            ["--resolution", "40"],
            "image_tokenizer.resolution: is 40, must be a multiple of 32",
        ),
    ],
)
def test_wrong_files_are_refused(
    both: Converted, tmp_path: Path, capsys: Any, change: Any, more: list[str], message: str
) -> None:
    source, out = tmp_path / "GLM-Image", tmp_path / "out"
    shutil.copytree(both.folder / "GLM-Image", source)
    change(source)
    size = [] if "--resolution" in more else SIZE
    assert main(["convert", str(source), "-o", str(out), *size, *more]) == 2
    error = capsys.readouterr().err
    assert tells(error, f"... {message} ...")
    assert "  next: " in error
    assert not out.exists()


def test_names_and_shapes_are_those_of_the_true_sizes() -> None:
    """On no memory: transformers' defaults, with the rotated half of a head that its three sections imply."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    config = GlmImageConfig(text_config={"rope_parameters": rope | {"mrope_section": [8, 12, 12]}})
    with torch.device("meta"):
        theirs = GlmImageForConditionalGeneration(config).state_dict()
    facts = facts_of(config.to_dict(), "config.json")
    wanted = {source: shape for source, shape, _ in decoder_tensors(facts).values()}
    found = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    image = {name.removeprefix("model.") for name in found.keys() - wanted.keys()}
    assert {name: found[name] for name in wanted} == wanted
    keys = {**facts.decoder, "grids": [[16, 16], [32, 32]]}
    decoder, grid = GlmImageDecoderConfig(**keys), (1, 1280)
    vocabulary = Vocabulary(
        facts.vocab_size, (range(20_000, 30_000),), range(16_384), {"pad": 167_841}
    )
    number = sum(torch.Size(shape).numel() for shape in wanted.values())
    assert decoder.num_parameters(vocabulary, grid) == number
    assert number / 1e9 == pytest.approx(9.0, abs=0.2)
    tensors = {
        name: theirs[f"model.{name}"] for name in image if not name.startswith("vqmodel.post_")
    }
    with torch.device("meta"):
        network = empty_network(tensors, GlmImageVQConfig())
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors.items()}
