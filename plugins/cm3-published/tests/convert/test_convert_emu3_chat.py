"""`cm3 convert --chat` of Emu3: descriptions and answers are those of transformers' Emu3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    Emu3ImageProcessor,
    Emu3Processor,
    PreTrainedTokenizerFast,
)

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3core.errors import GenerationError
from cm3run.model.tasks import task_for
from cm3serve.tasks import able
from tiny_emu3 import GRID, NUM_CODES, SIZE, Converted, converted

#: BAAI's template (`Emu3Processor.__init__`), with transformers' mark of a picture.
TEMPLATE = "You are a helpful assistant. USER: <image>{}. ASSISTANT:"
CODES = np.random.default_rng(3).integers(0, NUM_CODES, GRID[0] * GRID[1]).astype(np.int32)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("emu3"), "--chat")


def processed(both: Converted, question: str) -> list[int]:
    """Ids of transformers' `Emu3Processor`, the codes in place of its marks."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=both.tokenizer,
        bos_token="<|extra_203|>",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
    )
    processor = Emu3Processor(Emu3ImageProcessor(min_pixels=64), tokenizer)
    # transformers' tokenizer halves sides three times, this one once: the grid is the same
    picture = PILImage.new("RGB", (8 * GRID[1], 8 * GRID[0]))
    found = processor(images=picture, text=TEMPLATE.format(question))["input_ids"]
    first = found[0] if isinstance(found[0], list) else found
    rows = CODES.reshape(GRID) + both.ids.code
    written = iter([one for row in rows.tolist() for one in (*row, both.ids.eol)])
    mark = tokenizer.convert_tokens_to_ids("<image>")
    ids = [next(written) if one == mark else one for one in first]
    assert next(written, None) is None
    return ids


@pytest.mark.parametrize("question", ["What is it", "What is it?", "a red apple (or two)", "3*4"])
def test_prompts_are_the_processors(both: Converted, question: str) -> None:
    """The full stop that the template adds is read with what is before it."""
    task = task_for(both.model, "ask")
    prompt = task.prompt({"image": Codes(CODES, GRID), "question": question})
    found = both.model.components.serializer.prompt(prompt).tokens.tolist()
    assert found == processed(both, question)
    described = task_for(both.model, "caption").prompt({"image": Codes(CODES, GRID)})
    found = both.model.components.serializer.prompt(described).tokens.tolist()
    assert found == processed(both, "Please describe the image")


def test_answers_are_transformers(both: Converted) -> None:
    """Each token is the largest of its logits among texts and what ends them; no chance is in it."""
    record = {"image": Codes(CODES, GRID), "question": "What is it?"}
    task = task_for(both.model, "ask")
    prompt = task.prompt(record, max_tokens=8)
    [done] = both.model.complete([prompt])
    answer = task.answer(record, done.document)["answer"]
    ids, end = processed(both, "What is it?"), both.ids.eos
    allowed = torch.tensor([*range(both.ids.pad), end])
    text: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            logits = both.theirs(torch.tensor([ids + text])).logits[0, -1]
            best = int(allowed[logits[allowed].argmax()])
            if best == end:
                break
            text.append(best)
    assert text
    assert answer == both.tokenizer.decode(text)


def test_training_and_prompts_agree(both: Converted) -> None:
    """A sequence begins as its prompt, and its documents come back."""
    record = {"image": Codes(CODES, GRID), "question": "What is it?", "answer": " a bell"}
    task, serializer = task_for(both.model, "ask"), both.model.components.serializer
    document = task.document(record)
    sequence = serializer.sequence(document).tokens.tolist()
    prompt = serializer.prompt(task.prompt(record)).tokens.tolist()
    answer = both.tokenizer.encode("a bell").ids
    assert sequence == [*prompt, *answer, both.ids.eos]


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    picture, own = tmp_path / "shown.png", ["--model", str(both.folder / "own")]
    PILImage.new("RGB", (30, 20), "red").save(picture)
    assert main(["caption", str(picture), "--max-tokens", "4", *own]) == 0
    assert main(["ask", str(picture), "What is it?", "--max-tokens", "4", *own]) == 0
    assert main(["generate", "a red apple", "-o", str(tmp_path / "out"), *own]) == 2
    assert "was not tuned for" in capsys.readouterr().err
    assert able(both.model, ()) == ["caption", "ask"]


def test_emu3_gen_only_draws(both: Converted, tmp_path: Path) -> None:
    out = tmp_path / "gen"
    assert main(["convert", str(both.folder / "hf"), "-o", str(out), *SIZE]) == 0
    model = cm3core.load(out)
    assert able(model, ()) == ["draw"]
    prompt = model.components.serializer.prompt((Text("a red apple"), ImageHole())).tokens
    task = task_for(model, "generate").prompt({"caption": "a red apple"})
    assert model.components.serializer.prompt(task).tokens.tolist() == prompt.tolist()
    with pytest.raises(GenerationError, match="was not tuned for it"):
        model.caption(np.zeros((8, 12, 3), np.uint8))
