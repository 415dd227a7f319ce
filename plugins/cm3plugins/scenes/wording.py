"""Scenes in words: captions, instructions, questions with their answers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cm3plugins.scenes.composing import Item, Scene, apart
from cm3plugins.scenes.held_out import TRIES, Composer
from cm3plugins.scenes.keys import BACKGROUNDS, NUMBERS, RELATIONS, STEPS

#: What the main noun of a name stands before.
_AFTER_NOUN = re.compile(r" (?:with|without|of|in|on|at|to|for|from|facing)\b")
_VOWEL = re.compile(r"(?!one\b|one-|uni|eu|u[tk])[aeiou]|8|11|18", re.IGNORECASE)
_HISSES = ("ch", "sh", "x", "z", "ss")
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "fish": "fish",
    "mouse": "mice",
}

#: Captions: of objects, a background and a style. The first is canonical.
_WITH_BACKGROUND = (
    ", on {background}",
    " on {a_background} background",
    ", {background} background",
)
_WITH_STYLE = (", {style} style", ", in {style} style", ", drawn in {style} style")
_WITH_PLACE = ("{thing} {at}", "{thing} placed {at}", "{thing}, {at}")


def plural(label: str) -> str:
    """
    >>> plural("red car"), plural("face with tears of joy"), plural("cherry"), plural("fox"), plural("scissors")
    ('red cars', 'faces with tears of joy', 'cherries', 'foxes', 'scissors')
    >>> plural("woman in veil"), plural("letter y")
    ('women in veil', 'letter ys')
    """
    match = _AFTER_NOUN.search(label)
    end = match.start() if match else len(label)
    noun, rest = label[:end], label[end:]
    first, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        return f"{first} {_IRREGULAR[last]}{rest}".strip()
    if noun.endswith(_HISSES):
        return f"{noun}es{rest}"
    if noun.endswith("s"):
        return label
    if len(last) > 1 and last.endswith("y") and last[-2] not in "aeiou":
        return f"{noun[:-1]}ies{rest}"
    return f"{noun}s{rest}"


def with_article(words: str) -> str:
    """
    >>> with_article("red car"), with_article("owl"), with_article("unicorn"), with_article("8 ball")
    ('a red car', 'an owl', 'a unicorn', 'an 8 ball')
    """
    return f"{'an' if _VOWEL.match(words) else 'a'} {words}"


def at_place(place: str) -> str:
    """
    >>> at_place("top left"), at_place("middle")
    ('at the top left', 'in the middle')
    """
    return "in the middle" if place == "middle" else f"at the {place}"


class Words:
    """Scenes in words.

    Args:
        labels: concept -> its name.
        several_styles: whether captions name the style.
        several_sizes: whether captions name the size.
    """

    def __init__(
        self, labels: Mapping[str, str], several_styles: bool, several_sizes: bool
    ) -> None:
        self.labels, self.several_styles, self.several_sizes = labels, several_styles, several_sizes

    def bare(self, item: Item) -> str:
        """The item's name with its size: "small red car"."""
        small = "small " if self.several_sizes and item.size == "small" else ""
        return f"{small}{self.labels[item.concept]}"

    def thing(self, item: Item, *, style: bool = False) -> str:
        """The item with its number, and with its style: "two small red cars in noto style"."""
        number, words = len(item.corners), self.bare(item)
        words = with_article(words) if number == 1 else f"{NUMBERS[number - 1]} {plural(words)}"
        return f"{words} in {item.style} style" if style else words

    def caption(self, scene: Scene, rng: np.random.Generator | None = None) -> str:
        """A caption; without `rng`, the canonical one."""
        if rng is None:
            named = None if scene.background == "white" else 0
            return self._caption(scene, range(len(scene.items)), 0, named, 0)
        order = rng.permutation(len(scene.items)).tolist()
        if scene.relation:
            order = [0, 1]
        place, background, style = rng.integers(len(_WITH_PLACE), size=3).tolist()
        says_white = rng.random() < 0.2
        return self._caption(
            scene,
            order,
            place,
            background if says_white or scene.background != "white" else None,
            style,
        )

    def captions(self, scene: Scene) -> Iterator[str]:
        """All that `caption` may say of the scene."""
        orders = [(0, 1)] if scene.relation else itertools.permutations(range(len(scene.items)))
        backgrounds = (
            *range(len(_WITH_BACKGROUND)),
            *((None,) if scene.background == "white" else ()),
        )
        patterns = range(len(_WITH_PLACE)), backgrounds, range(len(_WITH_STYLE))
        for order, place, background, style in itertools.product(orders, *patterns):
            yield self._caption(scene, order, place, background, style)

    def _caption(
        self, scene: Scene, order: Iterable[int], place: int, background: int | None, style: int
    ) -> str:
        """A caption by the numbers of its patterns."""
        items = [scene.items[number] for number in order]
        mixed = self.several_styles and len({item.style for item in items}) > 1
        things = [self.thing(item, style=mixed) for item in items]
        if scene.relation:
            text = f"{things[0]} {scene.relation} {things[1]}"
        else:
            pattern = _WITH_PLACE[place]
            text = in_words(
                [
                    pattern.format(thing=thing, at=at_place(item.place)) if item.place else thing
                    for item, thing in zip(items, things, strict=True)
                ]
            )
        if background is not None:
            name = scene.background
            text += _WITH_BACKGROUND[background].format(
                background=name, a_background=with_article(name)
            )
        if self.several_styles and not mixed:
            text += _WITH_STYLE[style].format(style=items[0].style)
        return text

    def name(self, item: Item, background: str) -> str:
        """The caption of a plain picture: "a small red car in noto style, on white". With its article, as in a scene's caption:
        a name at the beginning of a text has other tokens than one inside, and would not be found by attention."""
        return f"{self.thing(item, style=self.several_styles)}, on {background}"


def in_words(parts: list[str]) -> str:
    """
    >>> in_words(["a key at the left", "a bell at the right"])
    'a key at the left and a bell at the right'
    """
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


class Change(NamedTuple):
    """An edit: the scene before and after, the instruction, and what changed.

    Args:
        before, after: the scenes.
        instruction: the words.
        kind: "replace", "remove", "add", "move", "background" or "style".
    """

    before: Scene
    after: Scene
    instruction: str
    kind: str


def change(composer: Composer, words: Words, number: int) -> Change:
    """The edit with this number; the scene that it leads to belongs to the split."""
    rng = composer.rng(number, "edit")
    kinds: list[Callable[[Composer, Words, Scene, np.random.Generator], Change | None]] = [
        _replace,
        _move,
        _background,
        *((_restyle,) if words.several_styles else ()),
        *((_remove, _add) if composer.most > 1 else ()),
    ]
    kind = kinds[number % len(kinds)]
    is_apart = composer.split in ("comp", "counts")  # there the picture before is of training
    for _ in range(TRIES):
        before = composer.any_scene(rng, "places" if rng.random() < 0.8 else "single")
        found = kind(composer, words, before, rng)
        if (
            found is not None
            and composer.admits(found.after)
            and composer.admits(before, "train" if is_apart else None)
        ):
            return found
    raise composer.found_none("edit")


def _one(scene: Scene, rng: np.random.Generator) -> int:
    return int(rng.integers(len(scene.items)))


def _swapped(scene: Scene, place: int, *items: Item) -> Scene:
    return replace(scene, items=(*scene.items[:place], *items, *scene.items[place + 1 :]))


def _other(composer: Composer, scene: Scene, style: str, rng: np.random.Generator) -> str:
    """A concept that the scene doesn't have."""
    while (concept := composer.concept(style, rng)) in {item.concept for item in scene.items}:
        pass
    return concept


def _replace(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    place = _one(before, rng)
    item = before.items[place]
    new = replace(item, concept=_other(composer, before, item.style, rng))
    old, wanted = words.labels[item.concept], with_article(words.labels[new.concept])
    text = (f"replace the {old} with {wanted}", f"turn the {old} into {wanted}")
    return Change(before, _swapped(before, place, new), text[int(rng.integers(2))], "replace")


def _remove(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    if len(before.items) < 2:
        return None
    place = _one(before, rng)
    label = words.labels[before.items[place].concept]
    text = (f"remove the {label}", f"take the {label} away")
    return Change(before, _swapped(before, place), text[int(rng.integers(2))], "remove")


def _add(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    raster, item = composer.raster, before.items[0]
    there = [(one.size, corner) for one in before.items for corner in one.corners]
    free = [
        place
        for place in raster.places
        if apart(raster, [*there, (item.size, raster.corner(item.size, place))])
    ]
    if not free or len(before.items) >= composer.most:
        return None
    place = free[int(rng.integers(len(free)))]
    corner = raster.corner(item.size, place)
    new = Item(_other(composer, before, item.style, rng), item.style, item.size, (corner,), place)
    text = (
        f"add {words.thing(new)} {at_place(place)}",
        f"put {words.thing(new)} {at_place(place)}",
    )
    after = replace(before, items=(*before.items, new))
    return Change(before, after, text[int(rng.integers(2))], "add")


def _move(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    raster, number = composer.raster, _one(before, rng)
    item = before.items[number]
    there = [(one.size, one.corners[0]) for one in before.items if one is not item]
    free = [
        place
        for place in raster.places
        if place != item.place
        and apart(raster, [*there, (item.size, raster.corner(item.size, place))])
    ]
    if not free:
        return None
    place = free[int(rng.integers(len(free)))]
    new = replace(item, corners=(raster.corner(item.size, place),), place=place)
    text = f"move the {words.labels[item.concept]} {'to the ' + place}"
    return Change(before, _swapped(before, number, new), text, "move")


def _background(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    others = [name for name in BACKGROUNDS if name != before.background]
    colour = others[int(rng.integers(len(others)))]
    text = (f"make the background {colour}", f"put it on {with_article(colour)} background")
    return Change(
        before, replace(before, background=colour), text[int(rng.integers(2))], "background"
    )


def _restyle(
    composer: Composer, words: Words, before: Scene, rng: np.random.Generator
) -> Change | None:
    own = {item.style for item in before.items}
    styles = [
        style
        for style in composer.by_style
        if style not in own and all(composer.has(item.concept, style) for item in before.items)
    ]
    if not styles:
        return None
    style = styles[int(rng.integers(len(styles)))]
    after = replace(before, items=tuple(replace(item, style=style) for item in before.items))
    return Change(before, after, f"draw it in {style} style", "style")


class Question(NamedTuple):
    """A question about a scene, its answer, and what it asks for.

    Args:
        question, answer: the words.
        kind: "what", "how many", "where", "colour" or "yes or no".
    """

    question: str
    answer: str
    kind: str


def question(composer: Composer, words: Words, scene: Scene, number: int) -> Question:
    """The question with this number about a scene; it has one answer."""
    rng = composer.rng(number, "question")
    asks = [_what, _how_many, _where, _colour, _whether]
    for turn in range(len(asks)):
        found = asks[(number + turn) % len(asks)](composer, words, scene, rng)
        if found is not None:
            return found
    raise AssertionError  # the colour can always be asked for


def _what(
    composer: Composer, words: Words, scene: Scene, rng: np.random.Generator
) -> Question | None:
    item = scene.items[_one(scene, rng)]
    if item.place:
        return Question(f"What is {at_place(item.place)}?", words.labels[item.concept], "what")
    if scene.relation:
        first, second = scene.items[:2]
        asked = f"What is {scene.relation} the {words.labels[second.concept]}?"
        return Question(asked, words.labels[first.concept], "what")
    return None


def _how_many(composer: Composer, words: Words, scene: Scene, rng: np.random.Generator) -> Question:
    item = scene.items[_one(scene, rng)]
    if rng.integers(2):
        number = sum(len(one.corners) for one in scene.items)
        return Question("How many things are there?", NUMBERS[number - 1], "how many")
    asked = f"How many {plural(words.labels[item.concept])} are there?"
    return Question(asked, NUMBERS[len(item.corners) - 1], "how many")


def _where(
    composer: Composer, words: Words, scene: Scene, rng: np.random.Generator
) -> Question | None:
    item = scene.items[_one(scene, rng)]
    if not item.place:
        return None
    asked = f"Where is the {words.labels[item.concept]}?"
    return Question(asked, at_place(item.place), "where")


def _colour(composer: Composer, words: Words, scene: Scene, rng: np.random.Generator) -> Question:
    return Question("Which colour is the background?", scene.background, "colour")


def _whether(composer: Composer, words: Words, scene: Scene, rng: np.random.Generator) -> Question:
    item = scene.items[_one(scene, rng)]
    holds = bool(rng.integers(2))
    if scene.relation and rng.integers(2):
        a, b = (with_article(words.labels[one.concept]) for one in scene.items[:2])
        opposite = next(
            r for r in RELATIONS if STEPS[r] == tuple(-step for step in STEPS[scene.relation])
        )
        asked = f"Is {a} {scene.relation if holds else opposite} {b}?"
        return Question(asked, "yes" if holds else "no", "yes or no")
    concept = item.concept if holds else _other(composer, scene, item.style, rng)
    return Question(
        f"Is there {with_article(words.labels[concept])}?", "yes" if holds else "no", "yes or no"
    )
