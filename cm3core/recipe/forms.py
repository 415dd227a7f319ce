"""The forms in which an argument may change a recipe. All commands that take overrides read them here.

    section.key=value          a value
    kind=name                  a component; `kind={name: ..., key: ...}` with keys
    +key=value, ++key=value    the same as key=value: the keys of a recipe are fixed, so there is none to add
    ~key                       forget what the recipe's files set: a key gets its default, a kind has no section
    kind/name                  the same as kind=name, as `cm3 describe` writes it; kind/key=value: kind.key=value
    key[0]=value               an item of a list

Imports only Python's own library, because `cm3 --help` imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeAlias

#: The parts of a key: names, and numbers of items.
KeyPath: TypeAlias = tuple[str | int, ...]
#: OmegaConf's notation for "this must still be set", which forgets what earlier layers set.
MANDATORY = "???"
_KEY = r"[A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*"
#: `key=value`, to which `plain` reduces the other forms.
KEY_VALUE = re.compile(rf"(?P<key>{_KEY})=(?P<value>.*)", re.DOTALL)
#: An argument that is meant as an override. Whether its key is well formed is checked later. Paths have slashes, so
#: `kind/name` is recognised only where nothing but overrides may stand.
OVERRIDE = re.compile(r"\+{0,2}[A-Za-z_][\w.\[\]-]*=.*|~[A-Za-z_][\w.\[\]-]*(=.*)?", re.DOTALL)
_GROUP = re.compile(r"(?P<kind>[A-Za-z_]\w*)/(?P<rest>[^=]*)(?P<value>=.*)?", re.DOTALL)
#: Values of one key in a sweep that are tried.
_MOST_VALUES = 64
_BRACKETS = {"[": "]", "{": "}"}
#: In YAML a quotation mark begins a text only behind one of these; elsewhere it is a letter (it's).
_BEFORE_QUOTE = "[{,:"


def plain(argument: str, kinds: Container[str] = ()) -> str:
    """Return an override as `key=value`; anything else is returned unchanged.

    >>> plain("+train.steps=5"), plain("~retriever"), plain("train.betas[0]=0.8")
    ('train.steps=5', 'retriever=???', 'train.betas[0]=0.8')
    >>> plain("sampler/cfg", {"sampler"}), plain("sampler/inner=cfg", {"sampler"}), plain("my/pictures", {"sampler"})
    ('sampler=cfg', 'sampler.inner=cfg', 'my/pictures')

    Args:
        argument: as given.
        kinds: the kinds of components, for the forms with a slash.
    """
    if re.fullmatch(f"~{_KEY}", argument):
        return f"{argument[1:]}={MANDATORY}"
    if argument.startswith("+"):
        argument = argument.removeprefix("+").removeprefix("+")
    group = _GROUP.fullmatch(argument)
    if group is None or group["kind"] not in kinds:
        return argument
    if group["value"] is None:
        return f"{group['kind']}={group['rest']}"
    return f"{group['kind']}.{group['rest'].replace('/', '.')}{group['value']}"


def path_of(key: str) -> KeyPath:
    """Return the parts of a key; the numbers of items are integers.

    >>> path_of("train.betas[0]")
    ('train', 'betas', 0)
    """
    parts = re.findall(r"\[(\d+)\]|([\w-]+)", key)
    return tuple(int(number) if number else name for number, name in parts)


class Items(dict[int, object]):
    """Items of a list that an override sets: number -> value."""


def next_step(argument: str, following: Sequence[str] = ()) -> str:
    """Return what to type instead of an argument that is no override.

    >>> next_step("train.steps:5"), next_step("~sampler=cfg"), next_step("train.steps")
    ('write train.steps=5', 'write ~sampler', 'write train.steps=VALUE')

    Args:
        argument: as given.
        following: the arguments after it.
    """
    if match := re.fullmatch(rf"(\+{{0,2}}{_KEY}) *(?:: *|:=)(.*)", argument, re.DOTALL):
        return f"write {match[1]}={match[2] or (following or ['VALUE'])[0]}"
    if match := re.fullmatch(rf"(~{_KEY})=.*", argument, re.DOTALL):
        return f"write {match[1]}"
    if match := re.fullmatch(rf"({_KEY})(?:@[\w.:-]*)?=(.*)", argument, re.DOTALL):
        return f"write {match[1]}={match[2]}"
    if "." in argument and re.fullmatch(_KEY, argument):
        return f"write {argument}=VALUE"
    return "write section.key=value, e.g. train.steps=100"


def whole(pieces: Sequence[str], is_valid: Callable[[str], bool]) -> str | None:
    """Return the argument that a shell has split at its spaces: the first pieces, joined; None if there is none.

    Args:
        pieces: an argument that is not valid, and those that follow it.
        is_valid: whether an argument is.
    """
    joined = (" ".join(pieces[:number]) for number in range(2, len(pieces) + 1))
    return next(filter(is_valid, joined), None)


def alternatives(argument: str) -> list[str]:
    """Return the overrides between which a comma in an argument chooses.

    >>> alternatives("retriever=none,bm25"), alternatives("train.betas=[0.9,0.95],[0.8,0.9]")
    (['retriever=none', 'retriever=bm25'], ['train.betas=[0.9,0.95]', 'train.betas=[0.8,0.9]'])
    >>> alternatives("train.steps=5"), alternatives("dataset.path=a,")
    ([], [])
    """
    key, equals, value = argument.partition("=")
    parts, _ = split_values(value)
    if not equals or not 1 < len(parts) <= _MOST_VALUES or not all(parts):
        return []
    return [f"{key}={part}" for part in parts]


def split_values(text: str) -> tuple[list[str], str]:
    """The values between a text's commas, except those in brackets, braces and quotation marks; and the bracket or quotation
    mark that is missing at the end, "" if none is.

    A quotation mark begins a quoted text only where a value may begin: the one of "don't" does not.

    >>> split_values("none,bm25"), split_values("[0.9, 0.95],'a,b'"), split_values("[1,2")
    ((['none', 'bm25'], ''), (['[0.9, 0.95]', "'a,b'"], ''), (['[1,2'], ']'))
    """
    values: list[str] = []
    closing: list[str] = []
    begin, quote, before = 0, "", ","
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in _BEFORE_QUOTE:
            quote = letter
        elif letter in _BRACKETS:
            closing.append(_BRACKETS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            values.append(text[begin:place].strip())
            begin = place + 1
        before = before if letter.isspace() else letter
    return [*values, text[begin:].strip()], quote or (closing[-1] if closing else "")


def swept(overrides: Sequence[str], is_valid: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return the overrides that are valid in each of their `alternatives`, but not as they stand.

    Args:
        overrides: not valid together.
        is_valid: whether some are valid together.
    """
    choices = {one: found for one in overrides if (found := alternatives(one))}
    first = {one: found[0] for one, found in choices.items()}

    def with_choice(changed: Mapping[str, str]) -> list[str]:
        return [{**first, **changed}.get(one, one) for one in overrides]

    return [
        one
        for one, found in choices.items()
        if not is_valid(with_choice({one: one}))
        and all(is_valid(with_choice({one: choice})) for choice in found)
    ]


def extends_of(entries: object, is_recipe: Callable[[str], bool]) -> list[str]:
    """Return the lines of a recipe that say what a list `defaults` of Hydra says.

    >>> extends_of(["base", {"sampler": "cfg"}, "_self_", {"override /retriever": None}], lambda name: False)
    ['extends: [base.yaml]', 'sampler: cfg', 'retriever: null']

    Args:
        entries: the value of `defaults`.
        is_recipe: whether a name is that of a shipped recipe, rather than of a file.
    """
    extended: list[str] = []
    sections: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        pairs = entry.items() if isinstance(entry, dict) else [(entry, "")]
        for name, choice in pairs:
            words = str(name).split()
            if not words or words[-1] == "_self_":
                continue
            group = words[-1].strip("/").partition("@")[0]
            if choice == "" and not is_recipe(group):
                group = group if group.endswith((".yaml", ".yml")) else f"{group}.yaml"
            if choice == "":
                extended.append(group)
            else:
                above, *below = group.split("/")
                chosen = "null" if choice is None else str(choice)
                for key in reversed(below):
                    chosen = f"{{{key}: {chosen}}}"
                sections[above] = chosen
    first = [f"extends: [{', '.join(extended)}]"] if extended else []
    return first + [f"{section}: {choice}" for section, choice in sections.items()]
