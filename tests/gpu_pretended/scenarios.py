"""Training, validation, decoding and the image tokenizer on pretended cards: what each does, as JSON.

    LD_PRELOAD=LIBRARY python scenarios.py

A process of its own: the pretended `torch.cuda` can't be taken back.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pretended_cuda
import torch
from pretended_cuda import Pretended, State

import cm3core
from cm3core.document import ImageHole, Text, TextHole
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import Recipe, compose
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3plugins.image_tokenizers.vqgan.trainer import TokenizerTrainer
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.upscalers.edsr.training import UpscalerTrainer
from cm3run.checkpoint import opening
from cm3run.devices import choose_device, choose_precision, default_device
from cm3run.generation.engine import Engine, EngineOptions, Request, candidates
from cm3run.processes import Processes
from cm3run.training import loop
from cm3run.training.metrics import GROUPS, modality_metrics
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.packing import TrainingBatch
from cm3run.training.state import TrainState

#: The cards: the second where autograd is not needed, so that every launch must be guarded.
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
GRID = (16, 16)
#: Codes of a picture drawn per pass.
WINDOW = 8
#: Layers that `deeper` adds.
MORE_LAYERS = 2
#: A step of an image tokenizer without other networks.
PLAIN = {"perceptual_weight": 0.0, "disc_weight": 0.0}
SIZES = [
    "decoder.d_model=128",
    "decoder.num_heads=2",
    "attention=by_device",
    "train.precision=auto",
    "sampler=cfg",
]


def recipe_of(*overrides: str) -> Recipe:
    return compose("tiny", [*SIZES, *overrides], registry=load_registry())


def seen(machine: Pretended) -> dict[str, Any]:
    """The log as JSON."""
    log = machine.log
    named = ("waits", "pinned_copies", "blocking_copies", "mixed", "unguarded", "uncaptured")
    return {
        "launches": log.num_launches,
        "bytes": log.num_bytes,
        "kernels": {name: log.launches[name] for name in sorted(log.launches)},
        "replays": log.replays,
        "graphs": log.graphs,
    } | {
        name: {str(key): number for key, number in sorted(getattr(log, name).items(), key=str)}
        for name in named
    }


def built(recipe: Recipe, device: torch.device) -> tuple[Any, Vocabulary, Any]:
    text = recipe.text_tokenizer.build(None)
    vocabulary = CM3LeonVocabulary(text.vocab_size + 4, 4096, 16, 0, 128)
    with torch.device(device):
        decoder = recipe.decoder.build(vocabulary, recipe.attention.build(), GRID)
    return decoder, vocabulary, text


def packed(vocabulary: Vocabulary, rows: int, length: int) -> TrainingBatch:
    """Rows of three documents each."""
    start = torch.arange(length) // (length // 3) * (length // 3)
    ids = torch.arange(rows * length).view(rows, length) % vocabulary.size
    return TrainingBatch(
        ids,
        ids,
        torch.ones(rows, length),
        torch.arange(length).expand(rows, length).contiguous(),
        torch.full((rows, length), -1),
        start.expand(rows, length).contiguous(),
        torch.ones(rows, length, dtype=torch.int8),
    )


def training(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    """A step of the loop once the optimiser has its state, and the measurement of a batch."""
    for optimizer in ("adamw", "muon"):
        recipe = recipe_of(f"train.optimizer={optimizer}")
        device = choose_device(None)
        assert device == torch.device("cuda"), device
        dtype, _ = choose_precision(recipe.train.precision, device)
        assert dtype == torch.bfloat16
        decoder, vocabulary, _ = built(recipe, device)
        state = TrainState(
            recipe,
            Path(),
            SimpleNamespace(decoder=decoder, source=SimpleNamespace(parts=())),
            None,
            decoder.train(),
            OptimizerGroup(decoder, recipe.train, dtype),
            Schedule.of(recipe.train),
            None,
            None,
            device,
            dtype,
            Processes(),
            sums_G2=torch.zeros(len(GROUPS), 2, device=device),
        )
        batch = packed(vocabulary, 2, 384)
        loop._step(state, decoder.hidden_states, [batch])
        machine.reset()
        loop._step(state, decoder.hidden_states, [batch])
        yield f"training step, {optimizer}", seen(machine)
    machine.reset()
    decoder.eval()
    with torch.inference_mode():
        sums_G2 = loop.batch_loss(state, decoder.hidden_states, batch, 0.0)[1]
    yield "validation", seen(machine)
    machine.reset()
    modality_metrics(sums_G2)
    yield "reading metrics", seen(machine)


def decoding(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two pictures with guidance, then two texts, on the second card while the first is current."""
    recipe = recipe_of()
    decoder, vocabulary, text = built(recipe, SECOND)
    serializer = Serializer(vocabulary, text, GRID)
    parts = decoder.eval(), serializer, recipe.sampler.build(), vocabulary
    engine, ahead = Engine(*parts), Engine(*parts, EngineOptions(window=WINDOW))
    assert engine.inference.dtype == torch.bfloat16
    prompt = Text("a red apple")
    picture = candidates(Request((prompt, ImageHole())), 2, engine.sampler)
    texts = [Request((prompt, TextHole(max_tokens=64)), seed=seed) for seed in range(2)]
    for name, used, requests, drawn in (
        ("picture", engine, picture, vocabulary.image.start),
        ("picture by windows", ahead, picture, vocabulary.image.start),
        ("text", engine, texts, vocabulary.text.start + 70),
    ):
        pretended_cuda.READ["integer"] = drawn
        session = used.open(details=False)
        for request in requests:
            session.submit(request)
        for number in range(3):
            machine.reset()
            before = session.num_drawn
            events = session.step()
            errors = [str(event.error) for event in events if hasattr(event, "error")]
            assert not errors, errors
            tokens = session.num_drawn - before
            yield f"decoding a {name}, step {number + 1}", seen(machine) | {"tokens": tokens}
    pretended_cuda.READ["integer"] = 0


def loading(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bytes on the card of a model that is loaded to generate, and once its likelihood was asked for too."""

    def memory() -> dict[str, int]:
        gc.collect()
        return {"live": State.live - before, "peak": State.peak - before}

    gc.collect()
    before = State.peak = State.live
    opening.check_fingerprints = lambda *_: None  # weights on the card have no values here
    machine.reset()
    model = cm3core.load("bundled:emoji64", device=SECOND)
    tokenizer = model.components.image_tokenizer
    own = sum(one.numel() * one.element_size() for one in tokenizer._module.state_dict().values())
    assert model.engine.inference.dtype == torch.bfloat16
    generating, log = memory(), seen(machine)
    engine, likelihood = model.engine, model.components.likelihood
    assert memory()["live"] == generating["live"]
    number = sum(one.numel() for one in likelihood.decoder.module.parameters())
    assert model.engine is engine
    found = {
        "parameters": number,
        "image_tokenizer": own,
        "generating": generating,
        "weight_bytes": engine.inference.weight_bytes(),
        "with_likelihood": memory(),
    }
    yield "loading a model", log | {"memory": found}


def deeper(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first step of a picture by decoders that have `MORE_LAYERS` more than others."""
    number = recipe_of().decoder.num_layers
    fewer, more = (f"decoder.num_layers={number + added}" for added in (0, MORE_LAYERS))
    llama = ("decoder=llama", "decoder.context_length=384")
    for name, options in (
        ("more layers", (more,)),
        ("more layers with head norms", (more, "decoder.qk_norm=true")),
        ("llama", (*llama, fewer)),
        ("llama with more layers", (*llama, more)),
    ):
        recipe = recipe_of(*options)
        decoder, vocabulary, text = built(recipe, SECOND)
        serializer = Serializer(vocabulary, text, GRID)
        engine = Engine(decoder.eval(), serializer, recipe.sampler.build(), vocabulary)
        pretended_cuda.READ["integer"] = vocabulary.image.start
        session = engine.open(details=False)
        for request in candidates(Request((Text("a red apple"), ImageHole())), 2, engine.sampler):
            session.submit(request)
        machine.reset()
        session.step()
        yield f"decoding a picture, {name}", seen(machine)
    pretended_cuda.READ["integer"] = 0


def image_tokenizer(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    recipe = recipe_of()
    tokenizer = recipe.image_tokenizer.build()
    tokenizer.move_to(SECOND)
    height, width = tokenizer.image_size
    with torch.cuda.device(SECOND):  # cuDNN takes the current device of the stream's context
        machine.reset()
        codes_Nc = tokenizer.encode(np.zeros((2, height, width, 3), np.uint8))
        yield "encoding pictures", seen(machine)
        machine.reset()
        tokenizer.decode(codes_Nc)
        yield "decoding codes to pictures", seen(machine)
    assert tokenizer.codebook().device.type == "cpu"


def other_networks(machine: Pretended) -> Iterator[tuple[str, dict[str, Any]]]:
    """An embedder, and steps of what trains an image tokenizer or an upscaler, where a command's `--device` says the
    second card."""
    recipe = recipe_of("upscaler=edsr", "upscaler.weights=null")
    with default_device("cuda:1"), torch.cuda.device(SECOND):
        embedder = recipe_of("embedder=light_encoder").embedder.build()
        embedder.move_to(choose_device(None))
        machine.reset()
        embedder.embed_texts(["a red apple", "a bell"])
        embedder.embed_images([np.zeros((64, 64, 3), np.uint8)])
        yield "embedding, light_encoder", seen(machine)
        config = recipe.image_tokenizer
        trainer = TokenizerTrainer(config.architecture, replace(config.training, **PLAIN))
        pixels_BCHW = torch.zeros(2, 3, *config.image_size)
        trainer.step(pixels_BCHW, 0, 0.0)
        machine.reset()
        trainer.step(pixels_BCHW, 1, 0.0)
        yield "training step, image tokenizer", seen(machine)
        upscaler = recipe.upscaler
        enlarger = UpscalerTrainer(upscaler.architecture, upscaler.training, upscaler.device)
        assert enlarger.device == SECOND
        side = 24
        small, large = torch.zeros(2, 3, side, side), torch.zeros(2, 3, side * 4, side * 4)
        enlarger.step(small, large, 0, 0.0)
        machine.reset()
        enlarger.step(small, large, 1, 0.0)
        yield "training step, upscaler", seen(machine)


def main() -> None:
    pretended_cuda.pretend()
    found: dict[str, dict[str, Any]] = {}
    with pretended_cuda.machine() as machine:
        for scenario in (training, decoding, deeper, loading, image_tokenizer, other_networks):
            for name, what in scenario(machine):
                found[name] = what
    assert State.current == [0]
    pretended_cuda.end(found)


if __name__ == "__main__":
    main()
