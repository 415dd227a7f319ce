"""The form of a picture's codes: a grid of places with one or several codes each, or a sequence that ends; the rules by
which one code may follow another; and where a code stands, for decoders that use it.

Codes of a picture are one array int32 [c] in every form, in the order in which they are generated. A grid of R x C
places with k codes each has c = R * C * k: raster order, the codes of a place side by side. A sequence has at most c
codes; the first `end` code ends it, and the array repeats `end` up to c, so that arrays of pictures can be stacked.
In the tokens of a document a sequence stops with its first `end`.

Rules are a finite state machine over classes of codes: `follows[state, class]` is the next state. They hold for the
pictures that a tokenizer encodes, and what a model generates is drawn among the codes that keep them, so that it always
decodes. Legend: c codes, S states, K classes, N pictures, V codes of the codebook, A axes, m codes that follow each other.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from cm3core.document import BoolArray, IntArray
from cm3core.errors import TokenizerError

#: In `CodeRules.follows`: a code of this class may not follow.
FORBIDDEN = -1
#: A missing code in what is given of a picture.
MISSING = -1


@dataclass(frozen=True, eq=False)
class CodeRules:
    """Which codes may follow which. The first code follows state 0.

    Args:
        class_of: int [V]; the class of each code, 0..K-1.
        follows: int [S, K]; the state after a code of a class, or `FORBIDDEN`.

    Raises:
        TokenizerError: classes or states that are out of range.
    """

    class_of: IntArray
    follows: IntArray

    def __post_init__(self) -> None:
        classes = np.ascontiguousarray(self.class_of, np.int32)
        follows = np.ascontiguousarray(self.follows, np.int32)
        if classes.ndim != 1 or follows.ndim != 2 or not classes.size or not follows.size:
            raise TokenizerError(
                "rules of codes",
                f"classes {list(classes.shape)} and follows {list(follows.shape)}",
                "give class_of [V] and follows [S, K], none of them empty",
            )
        num_states, num_classes = follows.shape
        if classes.min() < 0 or classes.max() >= num_classes:
            raise TokenizerError(
                "rules of codes",
                f"classes {classes.min()}..{classes.max()}, and follows has {num_classes} columns",
                "give each class a column of follows",
            )
        if follows.min() < FORBIDDEN or follows.max() >= num_states:
            raise TokenizerError(
                "rules of codes",
                f"states {follows.min()}..{follows.max()}, and follows has {num_states} rows",
                "give each state a row of follows",
            )
        for array in (classes, follows):
            array.setflags(write=False)
        object.__setattr__(self, "class_of", classes)
        object.__setattr__(self, "follows", follows)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash: equal rules, and only they, share it."""
        shape = np.asarray(self.follows.shape, "<i4").tobytes()
        content = (
            shape + self.class_of.astype("<i4").tobytes() + self.follows.astype("<i4").tobytes()
        )
        return hashlib.sha256(content).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodeRules) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def codebook_size(self) -> int:
        """Number of codes that have a class."""
        return len(self.class_of)

    def states(self, codes_Nc: IntArray) -> IntArray:
        """Return the state before each code and after the last one, int32 [N, c + 1]; `FORBIDDEN` from the first code
        on that breaks the rules."""
        states = np.zeros((len(codes_Nc), codes_Nc.shape[1] + 1), np.int32)
        state_N = states[:, 0]
        for place, code_N in enumerate(codes_Nc.T):
            after_N = self.follows[np.maximum(state_N, 0), self.class_of[code_N]]
            state_N = np.where(state_N < 0, FORBIDDEN, after_N).astype(np.int32)
            states[:, place + 1] = state_N
        return states

    @staticmethod
    def by_slot(sizes: Sequence[int]) -> CodeRules:
        """Rules of places with several codes, each from a codebook of its own.

        Args:
            sizes: codes of each slot; those of slot j come after those of the slots before it.

        >>> CodeRules.by_slot([2, 3]).follows.tolist()
        [[1, -1], [-1, 0]]
        """
        depth = len(sizes)
        follows = np.full((depth, depth), FORBIDDEN, np.int32)
        slots = np.arange(depth)
        follows[slots, slots] = (slots + 1) % depth
        return CodeRules(np.repeat(slots, sizes).astype(np.int32), follows)

    @staticmethod
    def until_end(codebook_size: int, end: int) -> CodeRules:
        """Rules of a sequence: one code or more, then `end`, and nothing but `end` behind it."""
        classes = np.zeros(codebook_size, np.int32)
        classes[end] = 1
        return CodeRules(classes, np.array([[1, FORBIDDEN], [1, 2], [FORBIDDEN, 2]], np.int32))


class CodePositions(ABC):
    """Where each code of a picture stands, in numbers that a decoder may use: row and column, or a pen's x and y.

    A position depends on its code and on the codes before it in the picture, never on later ones: it is what the codes
    so far lead to. States are values that nothing changes. Equal fingerprints mean equal positions.
    """

    @property
    @abstractmethod
    def axes(self) -> Mapping[str, int]:
        """Name of each axis, an identifier -> its number of positions n; they are 0..n-1."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Short text that says how positions are computed, for example a name and all sizes."""

    @abstractmethod
    def start(self) -> Hashable:
        """The state before the first code."""

    @abstractmethod
    def after(self, state: Any, code: int) -> Hashable:
        """The state after one more code, which may be any; `MISSING`: one still to be generated, of which nothing is
        known."""

    @abstractmethod
    def place(self, state: Any) -> tuple[int, ...]:
        """The position on each axis of the code that led to this state, in the order of `axes`."""

    def of(self, codes_m: IntArray) -> IntArray:
        """Positions of a picture's first m codes, int32 [m, A]."""
        return self.behind(self.start(), codes_m)[0]

    def behind(self, state: Any, codes_m: IntArray) -> tuple[IntArray, Any]:
        """Positions int32 [m, A] of codes that follow a state, and the state after them."""
        sizes, places = tuple(self.axes.values()), []
        for code in codes_m.tolist():
            places.append(self.place(state := self.after(state, code)))
        fits = all(len(place) == len(sizes) for place in places)
        places_mA = np.array(places if fits else [], np.int32).reshape(-1, len(sizes))
        if not fits or (places_mA < 0).any() or (places_mA >= sizes).any():
            raise TokenizerError(
                "positions of codes",
                f"{places} of the codes {codes_m.tolist()}, and the axes are {dict(self.axes)}",
                "give each axis a number from 0 to its size - 1",
            )
        return places_mA, state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodePositions) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class GridPositions(CodePositions):
    """Row and column of each code of a grid, and its slot where places have several codes."""

    def __init__(self, rows: int, columns: int, depth: int = 1) -> None:
        self._sizes = {"row": rows, "column": columns} | ({"slot": depth} if depth > 1 else {})

    @property
    def axes(self) -> Mapping[str, int]:
        return self._sizes

    @property
    def fingerprint(self) -> str:
        return f"grid {list(self._sizes.values())}"

    def start(self) -> int:
        return -1

    def after(self, state: int, code: int) -> int:
        return state + 1

    def place(self, state: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(state, tuple(self._sizes.values()))))

    def behind(self, state: Any, codes_m: IntArray) -> tuple[IntArray, Any]:
        """See the base: no code counts here but by its number, so that all positions are computed at once."""
        last = state + len(codes_m)
        places = np.unravel_index(np.arange(state + 1, last + 1), tuple(self._sizes.values()))
        return np.stack(places, axis=1).astype(np.int32), last


@dataclass(frozen=True)
class PictureForm:
    """How the codes of every picture of a tokenizer stand; make one with `of_grid` or `sequence`.

    Args:
        rows, columns: places of a grid; a sequence has one row of as many places as it has codes at most.
        depth: codes of a place.
        end: the code that ends a sequence. None: a grid, whose number of codes is fixed.
        rules: which codes may follow which. None: any code may stand anywhere.
        positions: where each code stands. None: at its index, no more is known.
        fed_axes: axes of `positions` that a decoder is fed, see `for_axes`.
    """

    rows: int
    columns: int
    depth: int = 1
    end: int | None = None
    rules: CodeRules | None = None
    positions: CodePositions | None = None
    fed_axes: tuple[str, ...] = ()

    @staticmethod
    def of_grid(
        rows: int,
        columns: int,
        depth: int = 1,
        rules: CodeRules | None = None,
        *,
        positions: CodePositions | None = None,
    ) -> PictureForm:
        """Return the form of rows * columns places with `depth` codes each.

        Args:
            rows, columns, depth: sizes.
            rules: which codes may follow which.
            positions: where each code stands; None: in its row and column, see `GridPositions`.

        Raises:
            TokenizerError: a size below 1, or rules by which no such picture can be.
        """
        positions = GridPositions(rows, columns, depth) if positions is None else positions
        return PictureForm(rows, columns, depth, None, rules, positions)._checked()

    @staticmethod
    def sequence(
        most_codes: int,
        end: int,
        codebook_size: int,
        rules: CodeRules | None = None,
        *,
        positions: CodePositions | None = None,
    ) -> PictureForm:
        """Return the form of at most `most_codes` codes, the last of which is `end`.

        Args:
            most_codes: maximum number of codes, `end` included.
            end: the code that ends a picture.
            codebook_size: number of codes, `end` included.
            rules: which codes may follow which; `end` must lead to a state that only `end` follows. None: any code, at
                least one, then `end`.
            positions: where each code stands.

        Raises:
            TokenizerError: numbers out of range, or rules by which a picture could not end in time.
        """
        if not 0 <= end < codebook_size or most_codes < 2:
            raise TokenizerError(
                "picture form",
                f"a sequence of at most {most_codes} codes that {end} of {codebook_size} ends",
                "give two codes or more, and an end among the codes",
            )
        rules = CodeRules.until_end(codebook_size, end) if rules is None else rules
        return PictureForm(1, most_codes, 1, end, rules, positions)._checked()

    def _checked(self) -> PictureForm:
        if min(self.rows, self.columns, self.depth) < 1:
            raise TokenizerError(
                "picture form",
                f"{self.rows} x {self.columns} places of {self.depth} codes",
                "give each at least 1",
            )
        if self.rules is None:
            return self
        rules = self.rules
        if self.end is not None:
            own = int(rules.class_of[self.end])
            done = set(rules.follows[:, own].tolist()) - {FORBIDDEN}
            only = np.full(rules.follows.shape[1], FORBIDDEN)
            alone = (rules.class_of == own).sum() == 1 and len(done) == 1
            only[own] = next(iter(done), FORBIDDEN)
            if not alone or rules.follows[only[own]].tolist() != only.tolist():
                raise TokenizerError(
                    "picture form",
                    f"code {self.end} is to end pictures, and its rules do not say so",
                    "give it a class of its own that leads to one state, which only that class follows",
                )
        if not Filling(self, np.full(self.num_codes, MISSING, np.int32)).can_be_filled:
            raise TokenizerError(
                "picture form",
                f"no picture of {self.num_codes} codes keeps its rules",
                "let every state that can be reached be left, and a sequence end in time",
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, codes of a row): their product is the number of codes of an array."""
        return self.rows, self.columns * self.depth

    @property
    def num_codes(self) -> int:
        """Codes of a picture's array, c: the number of a grid, the maximum of a sequence."""
        return self.rows * self.columns * self.depth

    @property
    def is_sequence(self) -> bool:
        """Whether pictures have different numbers of codes."""
        return self.end is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is a grid of one code a place, any code anywhere."""
        return self.depth == 1 and self.rules is None

    @property
    def name(self) -> str:
        """What it is, for messages.

        >>> PictureForm.of_grid(8, 8, 4).name, PictureForm.sequence(65, 64, 65).name
        ('a grid of 8 x 8 places with 4 codes each', 'a sequence of at most 65 codes')
        """
        if self.is_sequence:
            return f"a sequence of at most {self.num_codes} codes"
        each = "" if self.depth == 1 else f" with {self.depth} codes each"
        return f"a grid of {self.rows} x {self.columns} places{each}"

    def for_axes(self, axes: Mapping[str, int]) -> PictureForm:
        """The form for a decoder that is fed these axes of the positions (name -> size), in this order.

        Raises:
            TokenizerError: the positions have no such axis, or more positions than 32 bits can number.
        """
        has = {} if self.positions is None else dict(self.positions.axes)
        if any(has.get(name) != size for name, size in axes.items()):
            raise TokenizerError(
                "picture form",
                f"a decoder takes the axes {dict(axes)}, and codes here have {has or 'no positions'}",
                "give the decoder axes that the image tokenizer has (cm3 describe image_tokenizer), or none",
            )
        if (number := self.num_codes * prod(axes.values())) >= 2**31:
            raise TokenizerError(
                "picture form",
                f"{self.num_codes:,} codes at any position of {dict(axes)} are {number:,} cells, more than 32 bits can number",
                "give the decoder fewer axes, or axes of fewer positions",
            )
        return replace(self, fed_axes=tuple(axes))

    def cells(self, codes_m: IntArray, first: int = 0, state: Any = None) -> tuple[IntArray, Any]:
        """What a decoder is fed beside each of a picture's codes: index + c * position, int32 [m].

        The position is one number for all of `fed_axes`: mixed radix, the last axis fastest; 0 without axes.

        Args:
            codes_m: codes that follow each other; `MISSING` for one that is still to be generated.
            first: index of the first.
            state: of the positions before the first, unless that is 0.

        Returns:
            The cells, and the state after them.
        """
        cells = np.arange(first, first + len(codes_m), dtype=np.int32)
        if not self.fed_axes:
            return cells, None
        assert self.positions is not None
        start, sizes = state if first else self.positions.start(), dict(self.positions.axes)
        places_mA, state = self.positions.behind(start, codes_m)
        position_m = np.zeros_like(cells)
        for name in self.fed_axes:
            position_m = position_m * sizes[name] + places_mA[:, list(sizes).index(name)]
        return cells + self.num_codes * position_m, state

    def length(self, codes_c: IntArray) -> int:
        """Number of codes of one picture that count: up to the first `end` of a sequence, that one included.

        >>> PictureForm.sequence(5, 9, 10).length(np.array([3, 9, 9, 9, 9], np.int32))
        2
        """
        if self.end is None:
            return len(codes_c)
        ends = np.flatnonzero(codes_c == self.end)
        return int(ends[0]) + 1 if len(ends) else len(codes_c)

    def padded(self, codes_m: IntArray) -> IntArray:
        """The array int32 [c] of a picture's codes: `end` is repeated after those of a sequence."""
        after = np.full(self.num_codes - len(codes_m), self.end or 0, np.int32)
        return np.concatenate([codes_m, after]).astype(np.int32)

    def strange_place(self, codes_Nc: IntArray) -> tuple[int, int] | None:
        """First (picture, place) whose code breaks the rules, or after which the end is missing; None: there is none."""
        if self.rules is None:
            return None
        states = self.rules.states(codes_Nc)
        broken_N = (states == FORBIDDEN).any(axis=1)
        if self.end is not None:
            broken_N |= codes_Nc[:, -1] != self.end
        if not broken_N.any():
            return None
        picture = int(np.argmax(broken_N))
        wrong = np.flatnonzero(states[picture] == FORBIDDEN)
        return picture, int(wrong[0]) - 1 if len(wrong) else codes_Nc.shape[1] - 1

    def completed(self, codes_c: IntArray, missing_c: BoolArray) -> IntArray:
        """A picture int32 [c] that decodes: missing codes follow the rules, a sequence ends as soon as it can."""
        given = np.where(missing_c, MISSING, codes_c).astype(np.int32)
        if self.rules is None:
            return np.maximum(given, 0)
        filling = Filling(self, given, soon=True)
        codes = given.copy()
        for place in np.flatnonzero(missing_c).tolist():
            allowed = filling.allowed(place)
            if self.end is not None and allowed[self.rules.class_of[self.end]]:
                return self.padded(np.append(codes[:place], self.end))
            codes[place] = int(np.argmax(allowed[self.rules.class_of]))
            filling.put(place, int(codes[place]))
        return codes


class Filling:
    """A picture whose missing codes are drawn one after the other, and which codes may be drawn: those after which the
    rest, known codes included, can still keep the rules.

    Args:
        form: with rules, or with axes of positions that are fed.
        given: int32 [c]; `MISSING` where a code is missing. Of a sequence known to end, `end` up to c.
        most: maximum number of codes of a sequence whose end is missing. None: c.
        any_length: whether the only run of missing codes may be filled with fewer.
        soon: allow only codes that end a sequence as early as it can.
    """

    def __init__(
        self,
        form: PictureForm,
        given: IntArray,
        most: int | None = None,
        *,
        any_length: bool = False,
        soon: bool = False,
    ) -> None:
        self.form, self.given = form, given
        run = np.flatnonzero(given == MISSING) if any_length else given[:0]
        #: Places at which the known codes behind the missing ones may follow, and the first of these.
        self._may_close, self._behind = run[1:], int(run[-1]) + 1 if len(run) else 0
        #: Number of codes so far, and the states of rules and of positions behind them.
        self._place, self._state, self._position = 0, 0, None
        if form.rules is None:
            return
        self._rules = form.rules
        #: Classes of codes that may be drawn, bool [K]: where the length is free, the end is known.
        self._fills = np.ones(form.rules.follows.shape[1], np.bool_)
        if any_length:
            self._fills[form.rules.class_of[form.end]] = False
        length = len(given) if most is None or form.end is None else min(most, len(given))
        if soon and form.end is not None and given[-1] == MISSING:
            length = self._earliest_end()
        self._alive = self._backwards(length)

    def _backwards(self, length: int) -> BoolArray:
        """Before each place and behind the last, the states from which the rest can be filled, bool [c + 1, S]."""
        rules, num_codes = self._rules, len(self.given)
        alive = np.zeros((num_codes + 1, len(rules.follows)), np.bool_)
        if self.form.end is None:
            alive[num_codes] = True
        else:
            alive[length:, self._done] = True
        follows, forbidden = np.maximum(rules.follows, 0), rules.follows == FORBIDDEN
        for place in reversed(range(num_codes if self.form.end is None else length)):
            leads_SK = alive[place + 1][follows] & ~forbidden
            code = int(self.given[place])
            alive[place] = (
                leads_SK[:, self._fills].any(axis=1)
                if code == MISSING
                else leads_SK[:, rules.class_of[code]]
            )
            if place in self._may_close:
                alive[place] |= alive[self._behind]
        return alive

    def _earliest_end(self) -> int:
        """Fewest codes of a sequence with what is given."""
        rules = self._rules
        reached = np.zeros(len(rules.follows), np.bool_)
        reached[0] = True
        known = np.flatnonzero(self.given != MISSING)
        least = int(known[-1]) + 1 if len(known) else 0
        for place, code in enumerate(self.given.tolist()):
            if place >= least and reached[self._done]:
                return place
            after = rules.follows[reached]
            after = after if code == MISSING else after[:, rules.class_of[code]]
            reached = np.zeros(len(rules.follows), np.bool_)
            reached[after[after != FORBIDDEN]] = True
        return len(self.given)

    @property
    def _done(self) -> int:
        assert self.form.end is not None
        column = self._rules.follows[:, self._rules.class_of[self.form.end]]
        return int(column[column != FORBIDDEN][0])

    @property
    def can_be_filled(self) -> bool:
        """Whether any codes keep the rules."""
        return self.form.rules is None or bool(self._alive[0, 0])

    def allowed(self, place: int) -> BoolArray:
        """Classes of codes that may be drawn at a missing place, bool [K]. All missing codes before it are put."""
        self._reach(place)
        after_K = self._rules.follows[self._state]
        can_end_K = self._alive[place + 1][np.maximum(after_K, 0)]
        allowed: BoolArray = can_end_K & (after_K != FORBIDDEN) & self._fills
        return allowed

    def may_close(self, place: int) -> bool:
        """Whether the known codes behind the missing ones may follow at a place. All codes before it are put."""
        return place in self._may_close and bool(self._alive[self._behind, self._state])

    def cells(self, place: int, codes_m: IntArray) -> IntArray:
        """What a decoder is fed beside these codes from a place on, see `PictureForm.cells`; they are not taken in."""
        self._reach(place)
        return self.form.cells(codes_m, place, self._position)[0]

    def put(self, place: int, code: int) -> int:
        """Take in the code that was drawn at a place; return what a decoder is fed beside it."""
        self._reach(place)
        return self._advance(code)

    def _reach(self, place: int) -> None:
        """Take in known codes between the missing ones."""
        while self._place < place:
            self._advance(int(self.given[self._place]))

    def _advance(self, code: int) -> int:
        cell = self._place
        if self.form.rules is not None:
            self._state = int(self.form.rules.follows[self._state, self.form.rules.class_of[code]])
        if self.form.fed_axes:
            one = np.array([code], np.int32)
            [cell], self._position = self.form.cells(one, self._place, self._position)
        self._place += 1
        return int(cell)
