"""Which parameters of a decoder are trained, by the section `tune`; the others are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.errors import RecipeError
from cm3run.tuning.adapters import add_adapters
from cm3run.tuning.names import parameters_named

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.recipe.sections import TuneSection
    from cm3core.vocab import Vocabulary


def select_parameters(
    decoder: Decoder, section: TuneSection, vocabulary: Vocabulary, *, seed: int = 0
) -> dict[str, range]:
    """Freeze what the section `tune` doesn't train (`requires_grad`), and add its adapters.

    Args:
        decoder: with the weights of the model to tune.
        section: the recipe's.
        vocabulary: where the rows of image codes are.
        seed: of the adapters' first weights; torch's generators stay as they were.

    Returns:
        Parameters of which only some rows are trained, by name: the rows.

    Raises:
        RecipeError: a name is no parameter's or module's, the decoder has no such head or tables, or
            a rank exceeds a target's sides.
        MissingPackageError: adapters without peft.
    """
    module = decoder.module
    if section.method == "full":
        return {}
    if section.adapts:
        add_adapters(module, section, seed)
        return {}
    if section.method == "head":
        trained, rows = _head(decoder, vocabulary)
    else:
        rows = {}
        trained = (
            _tables(decoder)
            if section.method == "embeddings"
            else parameters_named(module, section.parameters)
        )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    return rows


def _head(decoder: Decoder, vocabulary: Vocabulary) -> tuple[set[str], dict[str, range]]:
    """The head's name, and its rows of image codes."""
    if decoder.own_head is not None:
        raise RecipeError(
            "tune.method",
            f"is 'head', and image codes of {type(decoder).__name__} have a head of their own",
            "use tune.method=layers with tune.parameters",
        )
    head = decoder.head_weight()
    for name, parameter in decoder.module.named_parameters():
        if parameter is head:
            image = vocabulary.image
            return {name}, {name: range(image.start, image.stop)}
    raise RecipeError(
        "tune.method",
        f"is 'head', and the head of {type(decoder).__name__} is no parameter of its own",
        "use tune.method=layers with tune.parameters, or lora",
    )


def _tables(decoder: Decoder) -> set[str]:
    """The parameters with a row for each token."""
    embeddings = {id(one) for one in decoder.parameter_groups().get("embedding", [])}
    found = {
        name
        for name, parameter in decoder.module.named_parameters()
        if id(parameter) in embeddings and parameter.shape[0] == decoder.vocab_size
    }
    if not found:
        raise RecipeError(
            "tune.method",
            f"is 'embeddings', and {type(decoder).__name__} has no table with a row for each token",
            "use tune.method=layers with tune.parameters",
        )
    return found
