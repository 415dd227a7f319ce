"""What is wrong in recipes and on the command line: place, cause and next step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3core.errors import RecipeError
from cm3core.recipe import recipe_from_yaml
from messages import tells
from plain_recipes import (
    fakes,
    made,
    message,
    write,
)

ERRORS = {
    (
        "decoder.num_layer=3",
    ): "command line: decoder.num_layer: the decoder 'plain' has no key 'num_layer'\n"
    "  next: did you mean 'num_layers'?",
    (
        "decoder.block.widht=3",
    ): "command line: decoder.block.widht: the decoder 'plain', block, has no key 'widht'\n"
    "  next: did you mean 'width'?",
    (
        "trian.steps=3",
    ): "command line: trian: is not a section of a recipe\n  next: did you mean 'train'?",
    (
        "extends=[base]",
    ): "command line: extends: works only in recipe files; the command line changes values of a recipe\n"
    "  next: write a file that begins with `extends: [base]`, and name it",
    (
        "decoder=plian",
    ): "command line: decoder.name: no decoder is called 'plian'\n  next: did you mean 'plain'?",
    (
        "decoder=torch.nn.Linear",
    ): "command line: decoder.name: no decoder is called 'torch.nn.Linear'\n"
    "  next: recipes name components, not Python classes; "
    "`cm3 --plugin FILE.py ...` registers a class from a file",
    (
        "decoder=[a]",
    ): "command line: decoder.name: is ['a'], must be the name of a component (plain)\n  next: write decoder=plain",
    (
        "decoder.num_layers=six",
    ): "command line: decoder.num_layers: is 'six', must be a whole number\n  next: write decoder.num_layers=3",
    (
        "decoder.num_layers=true",
    ): "command line: decoder.num_layers: is True, must be a whole number\n  next: write decoder.num_layers=3",
    ("train.steps=1e3",): "command line: train.steps: is 1000.0, must be a whole number or null\n"
    "  next: write train.steps=1000, or train.steps=null",
    ("text_tokenizer.path=2024",): "command line: text_tokenizer.path: is 2024, must be a text\n"
    "  next: write 'text_tokenizer.path=\"2024\"'",
    (
        "text_tokenizer.style=bold",
    ): "command line: text_tokenizer.style: is 'bold', must be plain or byte\n"
    "  next: write text_tokenizer.style=plain",
    (
        "train.betas=[0.9, high]",
    ): "command line: train.betas: is [0.9, 'high'] (in it, 'high' is not a number), "
    "must be a list of numbers\n  next: write 'train.betas=[0.9, 0.95]'",
    (
        "train=3",
    ): "command line: train: is 3, must be a mapping of keys to values\n  next: write train.KEY=3",
    (
        "retriever.num_retrieved=2",
    ): "command line: retriever.name: is missing: no layer before this one chose a component\n"
    "  next: name one: near",
    ("train.seed",): "command line: train.seed: is not key=value\n  next: write train.seed=VALUE",
    (
        "train.seed=1",
        "train.seed=2",
    ): "command line: train.seed: is given twice: train.seed=1 and train.seed=2\n"
    "  next: keep one of them",
    (
        "train.betas=[",
    ): "command line: train.betas=[: the value is not valid YAML\n  next: put it in quotes",
    (
        "train.seed=${train.sed}",
    ): "command line: train.seed: can't be resolved: Interpolation key 'train.sed' not found\n"
    "  next: correct the interpolation",
    (
        "train.seed=${train.schedule}",
    ): "command line: train.seed: is '${train.schedule}', which is 'cosine', must be a whole number\n"
    "  next: write a value, or refer to a key that has a whole number",
    (
        "text_tokenizer.path=???",
        "text_tokenizer.vocab_size=???",
    ): "recipe 'base': lacks values for text_tokenizer.vocab_size, text_tokenizer.path\n"
    "  next: give them in the recipe or in the command, e.g. cm3 train RECIPE "
    "text_tokenizer.vocab_size=... text_tokenizer.path=...",
}


@pytest.mark.parametrize("overrides", ERRORS)
def test_errors_of_the_command_line(folder: Path, overrides: tuple[str, ...]) -> None:
    assert message("base.yaml", *overrides) == ERRORS[overrides]


FILE_ERRORS = {
    "decoder: {num_layer: 3}": "mine.yaml: decoder.num_layer: the decoder 'plain' has no key 'num_layer'\n"
    "  next: did you mean 'num_layers'?",
    "train: {steps: 1}\ntrain: {steps: 2}": "mine.yaml, line 3: is not valid YAML: found duplicate key train\n"
    "  next: correct the line",
    "train: [": "mine.yaml, line 3: is not valid YAML: expected the node content, but found '<stream end>'\n"
    "  next: correct the line",
    "train: {1: 2}": "mine.yaml: train.1: the key 1 is not text\n  next: put it in quotes",
    "train: {seed: !!python/object/apply:os.getpid []}": "mine.yaml, line 2: is not valid YAML: "
    "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getpid'\n  next: correct the line",
    "decoder: {_target_: os.system}": "mine.yaml: decoder._target_: the decoder 'plain' has no key '_target_'\n"
    "  next: known: block, context_length, d_model, num_layers, rates, scale, tags",
}


def test_nesting_without_end(folder: Path) -> None:
    write(folder, "mine.yaml", "train: " + "[" * 20_000)
    assert tells(message("mine.yaml"), "mine.yaml: is not a recipe: it is")


@pytest.mark.parametrize("text", FILE_ERRORS)
def test_errors_name_the_file(folder: Path, text: str) -> None:
    write(folder, "mine.yaml", f"extends: ./base.yaml\n{text}\n")
    assert message("mine.yaml") == FILE_ERRORS[text]


def test_an_error_names_the_layer_and_not_the_recipe_that_was_asked_for(folder: Path) -> None:
    write(folder, "bad.yaml", "decoder: {depth: 3}")
    write(folder, "mine.yaml", "extends: [./base.yaml, ./bad.yaml]\ndecoder: {num_layers: 3}")
    assert tells(message("mine.yaml"), "bad.yaml: decoder.depth: the decoder 'plain' ... 'depth'")


def test_bad_extends(folder: Path) -> None:
    write(folder, "a.yaml", "extends: [./b.yaml]")
    write(folder, "b.yaml", "extends: [./a.yaml]")
    assert tells(message("a.yaml"), "a.yaml: extends: recipes extend ... a.yaml ... b.yaml")
    write(folder, "c.yaml", "extends: [./none.yaml]")
    assert tells(message("c.yaml"), "c.yaml: extends: there is ... none.yaml")
    write(folder, "d.yaml", "extends: {a: b}")
    assert tells(message("d.yaml"), "d.yaml: extends: is {'a': 'b'")


NOT_PLAIN = ["../../x", "a/b", "/x", "..", ".hidden", "a b", "a\\b", "x\n", "", "${a.b}", "n" * 101]


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_name_that_is_no_plain_one_is_refused(folder: Path, name: str) -> None:
    stored = made().to_yaml().replace("name: base\n", f"name: {json.dumps(name)}\n", 1)
    rule = "must be 1 to 100 letters, digits, '_', '-' and '.', not starting with '.'"
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    expected = f": name: is {shown!r}, {rule}\n  next: write a plain name"
    write(folder, "mine.yaml", f"extends: [./base.yaml]\nname: {json.dumps(name)}")
    write(folder, "below.yaml", "extends: [./mine.yaml]\nname: plain")
    for read, place in (
        (lambda: made("mine.yaml"), "mine.yaml"),
        (lambda: made("below.yaml"), "mine.yaml"),
        (lambda: made("base.yaml", f"name={json.dumps(name)}"), "command line"),
        (lambda: recipe_from_yaml(stored, fakes(), label="run/recipe.yaml"), "run/recipe.yaml"),
    ):
        with pytest.raises(RecipeError) as caught:
            read()
        if "${" not in name:  # that is an interpolation's own error
            assert str(caught.value) == place + expected


def test_a_file_whose_name_is_not_plain_must_state_one(folder: Path) -> None:
    write(folder, "my recipe.yaml", "extends: [./base.yaml]")
    assert tells(
        message("my recipe.yaml"), "my recipe.yaml: name: is 'my recipe' ... be 1 to 100 ... '_'"
    )
    write(folder, "my recipe.yaml", "extends: [./base.yaml]\nname: mine")
    assert made("my recipe.yaml").name == "mine"


@pytest.mark.parametrize("name", ["a", "n" * 100, "v1.2-b_3", "größe", "-"])
def test_plain_names_are_kept(folder: Path, name: str) -> None:
    write(folder, "mine.yaml", f"extends: [./base.yaml]\nname: {json.dumps(name)}")
    recipe = made("mine.yaml")
    assert recipe_from_yaml(recipe.to_yaml(), fakes()).name == recipe.name == name


@pytest.mark.parametrize("text", ["just words", "- a\n- b"])
def test_what_is_no_recipe_at_all(folder: Path, text: str) -> None:
    write(folder, "mine.yaml", text)
    assert tells(message("mine.yaml"), "mine.yaml: is not a recipe: its top")


def test_unknown_recipe() -> None:
    assert tells(
        message("cm3leon-350"), "recipe 'cm3leon-350': no shipped recipe ... 'cm3leon-350'"
    )
