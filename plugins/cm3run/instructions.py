"""The forms of the instructions that a model was tuned on, and how another instruction is read. No torch.

A model that was tuned on a few dozen instructions destroys a picture if it is asked for anything else, so the forms are
stored with it: whole instructions, or instructions with slots where the data had many different words ("add a {}").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TypeAlias

from cm3run.words import words_of

#: Stands for one or more words in a form.
SLOT = "{}"
#: At most this many forms are stored; with more, the instructions are free text.
MOST_FORMS = 200
#: With fewer records for each form, what else occurs among the instructions is unknown.
LEAST_RECORDS = 4
#: A word that occurs in fewer of the different instructions, and of the records, than this share fills a slot.
COMMON = 0.01
#: Least similarity in meaning of an instruction to a form that it is read as. By the bundled encoder, paraphrases of the
#: icon model's forms ("turn it filled") have 0.8 or more, other edits ("make it darker") less than 0.7.
SAME_MEANING = 0.8
#: Least similarity of a form that is offered in place of an instruction.
OFFERED = 0.6
#: Forms that an error lists in each group, and groups.
_NAMED, _GROUPS = 4, 8

#: Texts to compare, and the forms to compare with -> similarities at most 1, one row for each text; None: not available.
Likeness: TypeAlias = Callable[[Sequence[str], Sequence[str]], "Sequence[Sequence[float]] | None"]
#: The nearest word in spelling among some; None: none is near.
Spelling: TypeAlias = Callable[[str, Collection[str]], "str | None"]


@dataclass(frozen=True)
class Reading:
    """How an instruction is read.

    Args:
        text: what the model is given.
        why: how it differs from what was typed; "": it doesn't.
    """

    text: str
    why: str = ""

    @property
    def note(self) -> str:
        """What users are shown; "" for an instruction that is used as it was typed."""
        return f"the instruction is read as {self.text!r}: {self.why}" if self.why else ""


@dataclass(frozen=True)
class Forms:
    """The forms of a task's instructions.

    >>> forms = Forms(("make it filled", "add a {}"))
    >>> forms.exact("Make it filled."), forms.exact("add a red star"), forms.exact("mirror it")
    ('make it filled', 'add a red star', None)

    Args:
        forms: the most frequent first.
    """

    forms: tuple[str, ...]

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Forms | None:
        """The forms of the instructions in a training set; None: they are free text, or too few to tell.

        Args:
            counts: each instruction, with its number of records.
        """
        records = sum(counts.values())
        if not counts:
            return None
        by_count = sorted(counts, key=lambda text: (-counts[text], text))
        if len(counts) <= MOST_FORMS and records >= LEAST_RECORDS * len(counts):
            return cls(tuple(by_count))
        frames = Counter[str]()
        common = _common(counts)
        for text in by_count:
            frames[_frame(text, common)] += counts[text]
        kept = _without_covered(frames)
        if SLOT in kept or len(kept) > MOST_FORMS or records < LEAST_RECORDS * len(kept):
            return None
        return cls(tuple(sorted(kept, key=lambda form: (-frames[form], form))))

    @cached_property
    def _whole(self) -> dict[tuple[str, ...], str]:
        """Words of the forms without slots -> form."""
        return {tuple(words_of(form)): form for form in self.forms if SLOT not in form}

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(form) for form in self.forms if SLOT in form]

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        return frozenset(word for form in self.forms for word in words_of(form))

    def exact(self, text: str) -> str | None:
        """The instruction as it was in training, apart from capitals and punctuation; None: it has no form."""
        words = words_of(text)
        if (found := self._whole.get(tuple(words))) is not None:
            return found
        plain = " ".join(words)
        return text.strip() if any(one.fullmatch(plain) for one in self._patterns) else None

    def read(
        self, text: str, spelling: Spelling, likeness: Likeness | None = None
    ) -> Reading | None:
        """How the model is given an instruction: as it is, as a form with the same words, without typing errors, or as a
        form of the same meaning; None: none of these, so that the model was not tuned for it.

        Args:
            text: the instruction.
            spelling: corrects a word; None for one that is no typing error.
            likeness: compares meanings; None: only words are compared.
        """
        if (found := self.exact(text)) is not None:
            return Reading(found)
        words = words_of(text)
        for own, form in self._whole.items():
            if sorted(own) == sorted(words):
                return Reading(form, "the same words in another order")
        corrected = [
            word if word in self._vocabulary else spelling(word, self._vocabulary) or word
            for word in words
        ]
        if corrected != words and (found := self.exact(" ".join(corrected))) is not None:
            return Reading(found, "typing errors corrected")
        return self._by_meaning(text, likeness)

    def _by_meaning(self, text: str, likeness: Likeness | None) -> Reading | None:
        """The form of the same meaning. Its words must include those that the instruction shares with any form: "make it
        not filled" means nearly "make it filled", by the encoder."""
        shared = set(words_of(text)) & self._vocabulary
        forms = [form for own, form in self._whole.items() if shared <= set(own)]
        found = None if likeness is None or not forms or not shared else likeness([text], forms)
        if found is None:
            return None
        score, form = max(zip(found[0], forms, strict=True))
        if score < SAME_MEANING:
            return None
        return Reading(form, f"nearly the same meaning, similarity {score:.2f}")

    def nearest(self, text: str, likeness: Likeness | None = None) -> str | None:
        """The form to offer in place of an instruction: the nearest in meaning, or in spelling; None: none is near."""
        whole = list(self._whole.values())
        found = likeness([text], whole) if likeness is not None and whole else None
        if found is not None:
            score, form = max(zip(found[0], whole, strict=True))
            return form if score >= OFFERED else None
        plain = {" ".join(words): form for words, form in self._whole.items()}
        close = get_close_matches(" ".join(words_of(text)), plain, n=1)
        return plain[close[0]] if close else None

    def listed(self) -> str:
        """The forms in short: those with the same beginning together.

        >>> Forms(("make it filled", "make it thin", "cross it out", "add a star", "add a lock")).listed()
        "'make it filled' (or thin), 'cross it out', 'add a star' (or lock)"
        """
        groups: dict[tuple[str, ...], list[str]] = {}
        for form in self.forms:
            groups.setdefault(tuple(form.split()[:2]), []).append(form)
        shown = []
        for start, own in groups.items():
            rest = [" ".join(form.split()[len(start) :]) for form in own[1:]]
            some = ", ".join(rest[: _NAMED - 1])
            more = len(rest) - (_NAMED - 1)
            others = f" (or {some}{f' and {more} more' if more > 0 else ''})" if rest else ""
            shown.append(f"'{own[0]}'{others}")
        more = len(shown) - _GROUPS
        return ", ".join(shown[:_GROUPS]) + (f" and {more} other kinds" if more > 0 else "")


def _common(counts: Mapping[str, int]) -> frozenset[str]:
    """The words that occur in enough of the different instructions, or of the records, to be part of their forms."""
    texts, records = Counter[str](), Counter[str]()
    for text, number in counts.items():
        own = dict.fromkeys(words_of(text), 1)
        texts.update(own)
        records.update(dict.fromkeys(own, number))
    least_texts = max(2.0, COMMON * len(counts))
    least_records = max(float(LEAST_RECORDS), COMMON * sum(counts.values()))
    return frozenset(
        word
        for word, number in records.items()
        if number >= least_records or texts[word] >= least_texts
    )


def _frame(text: str, common: Collection[str]) -> str:
    """A text with a slot for each run of words that are not common.

    >>> _frame("Put a red hat on it", {"put", "a", "on", "it"})
    'put a {} on it'
    """
    pieces: list[str] = []
    for word in words_of(text):
        piece = word if word in common else SLOT
        if piece != SLOT or pieces[-1:] != [SLOT]:
            pieces.append(piece)
    return " ".join(pieces)


def _without_covered(frames: Collection[str]) -> list[str]:
    """The frames that no other frame covers: "add a {}" covers "add a big {}"."""
    patterns = [(one, _pattern(one)) for one in frames if SLOT in one]
    return [
        frame
        for frame in frames
        if not any(other != frame and own.fullmatch(frame) for other, own in patterns)
    ]


def _pattern(form: str) -> re.Pattern[str]:
    """Matches the plain words of an instruction of this form, and forms that it covers."""
    return re.compile(" ".join(_pieces(form)))


def _pieces(form: str) -> Iterator[str]:
    for piece in form.split():
        yield r"\S+(?: \S+)*" if piece == SLOT else re.escape(piece)
