"""The facts about a model that the page shows: sizes, samplers, styles and examples, all taken from the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cm3core.errors import CM3Error
from cm3run.model.async_engine import in_thread
from cm3run.prompting import AnsweringRetrieverConfig
from cm3serve.images_api import can_trace
from cm3serve.tasks import able

if TYPE_CHECKING:
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model
    from cm3serve.intake import Intake
    from cm3serve.tasks import Workshop

#: The route: GET reads the facts of a model in memory, POST loads it first.
FACTS = "/studio/facts"
#: Maximum number of texts to read for styles and examples.
MOST_READ = 5000
MOST_STYLES = 24
NUM_EXAMPLES = 12
#: A style is the end of at least this many texts, with this many different beginnings.
FEWEST = 4
_LONGEST_STYLE = 40


def styles_of(texts: Sequence[str]) -> list[str]:
    """The styles of the data, if it has any: the endings after a comma that many texts share, the longest for each
    text.

    >>> styles_of([f"{thing}, line style" for thing in ("cat", "dog", "sun", "key")] + ["a cat, asleep"])
    ['line style']
    >>> styles_of([f"{thing}, filled, tabler" for thing in ("cat", "dog", "sun", "key")])
    ['filled, tabler']
    """
    beginnings: dict[str, set[str]] = {}
    for text in texts:
        for beginning, end in _parts(text):
            beginnings.setdefault(end, set()).add(beginning)
    shared = {end for end, own in beginnings.items() if len(own) >= FEWEST}
    longest = (next((end for _, end in _parts(text) if end in shared), None) for text in texts)
    counted = Counter(end for end in longest if end is not None)
    return [end for end, number in counted.most_common(MOST_STYLES) if number >= FEWEST]


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(beginning, end) at each comma, the longest end first."""
    parts = text.split(", ")
    for place in range(1, len(parts)):
        end = ", ".join(parts[place:])
        if 0 < len(end) <= _LONGEST_STYLE:
            yield ", ".join(parts[:place]), end


def examples_of(texts: Sequence[str]) -> list[str]:
    """A sample of the texts, evenly spread."""
    step = max(1, len(texts) // NUM_EXAMPLES)
    return list(dict.fromkeys(texts[::step]))[:NUM_EXAMPLES]


def things_of(texts: Sequence[str], styles: Sequence[str]) -> list[str]:
    """Example objects from the texts, without styles, each once. If enough objects have several texts, they are the
    objects with the most texts, which the model knows best.

    >>> things_of(["a cat, line style", "a cat, flat", "a dog"], ["line style"])
    ['a cat', 'a cat, flat', 'a dog']
    """
    plain: Counter[str] = Counter()
    others: dict[str, None] = {}
    for text in texts:
        thing = next((start for start, end in _parts(text) if end in styles), None)
        if thing is None:
            others[text] = None
        else:
            plain[thing] += 1
    known = [thing for thing, number in plain.most_common() if number > 1]
    if len(known) >= NUM_EXAMPLES:
        return known[:NUM_EXAMPLES]
    # a text with an unlisted style is a poor example of an object
    return examples_of(list(plain if len(plain) >= NUM_EXAMPLES else plain | others))


def facts_of(loaded: AsyncModel, name: str, workshop: Workshop) -> dict[str, Any]:
    """All facts about a model that the page needs."""
    model = loaded.model
    height, width = model.image_size
    texts = _texts(model)
    styles = drawn_styles(styles_of(texts), model)
    names = model.recipe.component_names
    registry = model.components.registry
    rows, columns = model.components.image_tokenizer.grid
    return {
        "model": name,
        "step": model.step,
        "recipe_hash": model.recipe_hash,
        "size": [width, height],
        "rows": rows,
        "columns": columns,
        "tasks": able(model, workshop.forced),
        "conditions": workshop.structures.offered(model),
        "sampler": {"name": names.get("sampler", ""), "keys": _keys(model)},
        "svg": can_trace(),
        "samplers": registry.names("sampler"),
        "reranker": names.get("reranker"),
        "rerankers": registry.names("reranker"),
        "upscaler": names.get("upscaler"),
        "retrieves": model.recipe.retriever is not None and model.recipe.retriever.retrieves,
        "answers": model.answers,
        "candidates": model.recipe.generate.num_candidates,
        "styles": styles,
        "things": things_of(texts, styles),
        "examples": examples_of(texts),
        "max_text_tokens": model.recipe.data.max_text_tokens,
    }


def shown_facts(loaded: AsyncModel, name: str, workshop: Workshop) -> dict[str, Any]:
    """The facts about a model, and the limits of requests."""
    limits = workshop.limits
    return facts_of(loaded, name, workshop) | {
        "limits": {
            "n": limits.number,
            "candidates": limits.candidates,
            "at_once": limits.at_once,
            "prompt_characters": limits.prompt_characters,
            "body_bytes": limits.body_bytes,
            "picture_pixels": limits.picture_pixels,
            "pictures": limits.pictures,
            "side": limits.side,
        }
    }


async def facts(workshop: Workshop, intake: Intake) -> dict[str, Any]:
    """`POST /studio/facts`: load the model if it is not in memory."""
    name = workshop.pool.name_of(intake.values.get("model"))
    async with workshop.pool.use(name) as loaded:
        return await in_thread(shown_facts, loaded, name, workshop)


def drawn_styles(styles: Sequence[str], model: Model) -> list[str]:
    """The styles, except those whose documents the retriever or the prompt rewriter avoids because the model draws them
    badly."""
    retriever, rewriter = model.recipe.retriever, model.components.prompt_rewriter

    def avoided(style: str) -> bool:
        by_retriever = isinstance(retriever, AnsweringRetrieverConfig) and retriever.avoids(style)
        return by_retriever or rewriter.avoids(style)

    return [style for style in styles if not avoided(style)]


def _texts(model: Model) -> list[str]:
    """Texts of the model's training data, if it is available."""
    try:
        source = model.components.memory_of_split(None)
        step = max(1, len(source) // MOST_READ)
        from cm3core.document import text_of

        return [text_of(source.document(index)) for index in range(0, len(source), step)]
    except (CM3Error, OSError):  # a model may be served without its data
        return []


def _keys(model: Model) -> dict[str, Any]:
    """The numbers of the model's sampler, which are the page's defaults."""
    from cm3core.config.schema import to_plain

    plain = to_plain(model.sampler_config())
    return {key: value for key, value in plain.items() if isinstance(value, (int, float))}
