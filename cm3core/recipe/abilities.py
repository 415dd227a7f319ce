"""What a model can do, from the declarations of its components (`ComponentConfig.offers` and `requires`).

A model has an ability if one of its components offers it and none rules it out. Commands need abilities
(`cm3run.life`), and so do components: a reranker that scores prompts as holes needs a model that fills holes.
Names are open: a plugin's components may offer and require abilities of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cm3core.config.schema import all_parts
from cm3core.errors import RecipeError
from cm3core.interfaces.component import ComponentConfig

#: Kind -> (name, config), as in `Recipe.components`.
Components: TypeAlias = Mapping[str, tuple[str, ComponentConfig]]


@dataclass(frozen=True)
class Ability:
    """What an ability is, for messages.

    Args:
        words: completes "needs a model that ...".
        denied: completes "KIND 'NAME' ..." for a component that rules the ability out.
        choices: kind -> what to write in a recipe that lacks the ability because of that kind.
        usual: whether a recipe has it if no component says anything about it.
    """

    words: str
    denied: str
    choices: Mapping[str, str] = field(default_factory=dict)
    usual: bool = False


#: Fills holes anywhere in a document. Objectives that mask spans offer it, layouts without sentinels rule it out.
HOLES = "holes"
#: Fills several holes of a document at once. Objectives that mask several spans offer it.
SEVERAL_HOLES = "several_holes"
#: Pictures are grids of codes, so that those of a box can be filled. Image tokenizers say so.
GRID = "grid"
#: Each place of a picture has one code, and each code a vector. Image tokenizers say so.
CODE_VECTORS = "code_vectors"
#: There are vectors of texts and pictures in one space. Embedders offer it.
EMBEDDER = "embedder"
#: Pictures and documents are read before what is generated. Layouts say so.
PREFIX = "prefix"
#: Texts are generated. Layouts say so.
TEXT = "text"
#: Conversations are written in turns. Layouts say so.
TURNS = "turns"
#: The decoder can be trained. Decoders and attention backends without gradients rule it out.
GRADIENTS = "gradients"
#: Documents to retrieve stay as they are during training. Retrievers from shared databases rule it out.
FIXED_DOCUMENTS = "fixed_documents"
#: Any text has ids. Text tokenizers of classes rule it out.
WORDS = "words"
#: The text tokenizer has named tokens besides those of texts, such as "<s>". Text tokenizers offer it.
NAMED_TOKENS = "named_tokens"

ABILITIES: Mapping[str, Ability] = {
    HOLES: Ability(
        "fills holes anywhere in a document",
        "only continues documents",
        {"objective": "objective=cm3", "layout": "layout=cm3leon"},
    ),
    SEVERAL_HOLES: Ability(
        "fills several holes at once", "masks one span at most", {"objective": "objective=cm3"}
    ),
    GRID: Ability(
        "has pictures on a grid of codes",
        "has pictures without a grid",
        {"image_tokenizer": "image_tokenizer=vqgan"},
        usual=True,
    ),
    CODE_VECTORS: Ability(
        "has one image code with a vector at each place",
        "has no vectors of codes, or several codes at a place",
        {"image_tokenizer": "image_tokenizer=vqgan"},
        usual=True,
    ),
    EMBEDDER: Ability("has an embedder", "embeds nothing", {"embedder": "embedder=light_encoder"}),
    PREFIX: Ability(
        "reads pictures and documents before what it generates",
        "allows nothing after a picture",
        {"layout": "layout=cm3leon"},
        usual=True,
    ),
    TEXT: Ability(
        "generates text", "can't generate text", {"layout": "layout=cm3leon"}, usual=True
    ),
    TURNS: Ability("writes conversations in turns", "has no turns", {"layout": "layout=chameleon"}),
    GRADIENTS: Ability(
        "can be trained",
        "has no gradients",
        {"attention": "attention=sdpa", "decoder": "decoder=cm3leon"},
        usual=True,
    ),
    FIXED_DOCUMENTS: Ability(
        "retrieves from documents that stay as they are",
        "retrieves from documents that may change at any moment",
        {"retriever": "retriever=dense retriever.bank=FOLDER"},
        usual=True,
    ),
    WORDS: Ability(
        "reads any words",
        "knows names of classes alone",
        {"text_tokenizer": "text_tokenizer=byte"},
        usual=True,
    ),
    NAMED_TOKENS: Ability(
        "has a text tokenizer with named tokens",
        "has no named tokens",
        {"text_tokenizer": "text_tokenizer=hf text_tokenizer.path=FILE"},
    ),
}


@dataclass(frozen=True)
class Lack:
    """Why a recipe lacks an ability.

    Args:
        cause: in words.
        next_step: what to write instead.
    """

    cause: str
    next_step: str


def known(ability: str) -> Ability:
    """What an ability is; one that a plugin brought is known by its name alone."""
    return ABILITIES.get(ability, Ability(f"has {ability!r}", f"rules out {ability!r}"))


def lack_of(components: Components, ability: str) -> Lack | None:
    """Why a recipe's components lack an ability; None: they have it. Those that are not installed say nothing."""
    about, offered = known(ability), False
    for kind, (name, config) in components.items():
        stated = config.offers()
        if stated.get(ability) is False:
            instead = about.choices.get(kind, f"another {kind} (cm3 kinds {kind})")
            return Lack(f"{kind} {name!r} {about.denied}", instead)
        offered = offered or ability in stated
    if offered or about.usual:
        return None
    choices = [*about.choices.values(), f"a component that offers {ability!r}"]
    return Lack("no component of the recipe offers that", choices[0])


def check_required(components: Components) -> None:
    """Raise `RecipeError` if a component, or one inside it, requires an ability that the recipe lacks."""
    for kind, (name, config) in components.items():
        for part in (config, *(inner for _, inner in all_parts(config))):
            for ability in part.requires():
                if (lack := lack_of(components, ability)) is not None:
                    raise RecipeError(
                        kind,
                        f"{name!r} needs a model that {known(ability).words}, but {lack.cause}",
                        f"write {lack.next_step}, or choose another {kind} (cm3 kinds {kind})",
                    )
