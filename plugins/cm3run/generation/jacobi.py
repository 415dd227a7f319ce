"""Draw several codes of a picture per step, with the same result as one code per step.

A sampler's draw at a position is a function of its logits, the seed and the position (`Sampler.draw`). A picture is
therefore the only sequence x in which every x_i is the draw after x_<i: the fixed point of that function. Jacobi
iteration finds it (Song et al. 2021, arXiv:2002.03681; for pictures Teng et al. 2024, arXiv:2410.01699): guess the
codes ahead, compute the logits after each of them in one forward pass, draw each position again with its own noise,
and accept the draws up to and including the first that differs from its guess. Each position keeps its noise from one
iteration to the next (the coupling of An et al. 2025, arXiv:2510.24211), so no rejection or correction is needed: the
tokens equal those of one draw per step, as long as a forward pass over many tokens gives the same logits as over one.

Legend: n requests, w positions a step (the window), S stream rows, g those of a group, G guidance streams, E model
dimension, R ids of a legal slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from cm3core.document import IntArray
from cm3run.generation.prompts import padded

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import InferenceDecoder, KVCache
    from cm3run.generation.groups import Group
    from cm3run.generation.row import ActiveRequest

#: Codes drawn per step. "auto": as many as gain most, judged by how many are accepted; 1: one by one.
Window: TypeAlias = int | Literal["auto"]
_NONE = np.zeros(0, np.int32)


def can_look_ahead(rows: Sequence[ActiveRequest], groups: Sequence[Group]) -> bool:
    """Whether a batch can draw several tokens per step: all are codes of pictures, one call draws for all of them, and
    a draw depends on the previous one only through its logits."""
    return (
        len(groups) == 1
        and groups[0].states is None
        and groups[0].penalty is None
        and groups[0].drawn is None
        and all(row.grammar.modality == "image" for row in rows)
        and any(row.draws_now > 1 for row in rows)
    )


#: Longest window that "auto" takes: a longer one gained nothing with any model measured.
MOST_UNASKED = 16
#: Share of the past that counts after each further step: about twenty steps are remembered.
FADING = 0.95
#: Least gain for which "auto" draws several codes per step: keeping guesses costs some. With 1.1, four candidates of a
#: bundled model (8 stream rows) took 14% longer or 11% less than one by one.
LEAST_GAIN = 1.2
#: Power by which "auto" chooses its window at least. A pass over a few codes costs nearly as much as one over eight, so
#: shorter windows never gain, and with them fewer guesses are refined: with random weights they took longer than one by
#: one, where eight codes gained.
LEAST_POWER = 0.4


@dataclass
class Acceptance:
    """How many draws of a request are accepted per step, and the window that follows from it.

    Of a window of w codes about w ** power are accepted (measured for windows of 2 to 32: a power of 0.6 for the
    bundled icons, 0.4 for emoji of 256 codes, 0.3 for random weights). The power is estimated from the request's last
    steps, so the window depends on the codes alone and never on a clock.

    Args:
        steps, window, accepted: number of steps, codes drawn and codes accepted in them; the past fades. The values
            at the start stand for eight steps at a power of 0.5.
    """

    steps: float = 8.0
    window: float = 128.0
    accepted: float = 32.0

    def add(self, window: int, accepted: int) -> None:
        """Take in a step."""
        self.steps = FADING * self.steps + 1
        self.window = FADING * self.window + window
        self.accepted = FADING * self.accepted + accepted

    def forget(self) -> None:
        """Go a quarter of the way back to the start, so that guessing is tried again behind a stretch without."""
        start = Acceptance()
        self.steps += (start.steps - self.steps) / 4
        self.window += (start.window - self.window) / 4
        self.accepted += (start.accepted - self.accepted) / 4

    def best_window(self, num_rows: int, rows_at_once: float) -> int:
        """The window with the most codes in a given time; 1 where several codes per step gain too little.

        A forward pass over n tokens takes a time proportional to `rows_at_once` + n.

        Args:
            num_rows: stream rows of the batch.
            rows_at_once: see `InferenceDecoder`.
        """
        power = log(self.accepted / self.steps) / log(self.window / self.steps)
        power = min(max(power, 0.0), 0.9)
        # where w ** aim / (rows_at_once + num_rows * w) is largest
        aim = max(power, LEAST_POWER)
        window = min(MOST_UNASKED, int(aim / (1 - aim) * rows_at_once / num_rows))
        if window < 2:
            return 1
        gain = window**power * (rows_at_once + num_rows) / (rows_at_once + num_rows * window)
        return window if gain >= LEAST_GAIN else 1


class Guesses:
    """Predicts each request's next draws from those that followed earlier wrong guesses.

    Args:
        window: codes drawn per step, one more than are guessed. "auto": see `Acceptance`.
        columns: cells in a row of the picture.
        rows_at_once: see `InferenceDecoder`.
    """

    def __init__(self, window: Window, columns: int, rows_at_once: float = 0) -> None:
        self._window, self._columns, self._rows_at_once = window, columns, rows_at_once
        self._drawn: WeakKeyDictionary[ActiveRequest, IntArray] = WeakKeyDictionary()
        self._acceptance: WeakKeyDictionary[ActiveRequest, Acceptance] = WeakKeyDictionary()

    def window(self, row: ActiveRequest, num_rows: int) -> int:
        """Codes that the request draws per step, in a batch of this many stream rows."""
        if self._window != "auto":
            return self._window
        return self._acceptance.setdefault(row, Acceptance()).best_window(
            num_rows, self._rows_at_once
        )

    def keep(self, row: ActiveRequest, drawn: IntArray, num_accepted: int) -> None:
        """Remember what a step drew for a request, and how much of it was accepted."""
        self._drawn[row] = drawn[num_accepted:]
        if self._window == "auto" and len(drawn) > 1:
            self._acceptance.setdefault(row, Acceptance()).add(len(drawn), num_accepted)

    def passed_over(self, rows: Sequence[ActiveRequest]) -> None:
        """Note that a step drew for these requests without guesses."""
        for row in rows:
            if row in self._acceptance:
                self._acceptance[row].forget()

    def of(self, row: ActiveRequest, num_rows: int) -> IntArray:
        """Guess the request's next tokens, int32, except the last token of the run of codes. Its grammar must have
        taken all accepted tokens.

        A cell without an earlier draw is guessed to equal the cell above it, or else the cell before it.
        """
        num = min(self.window(row, num_rows), row.draws_now) - 1
        drawn = self._drawn.pop(row, _NONE)[:num]
        grammar = row.grammar
        if len(drawn) == num or not (grammar.current or len(drawn)):
            return drawn
        cells = grammar.hole.cells
        assert cells is not None
        place = len(grammar.current)
        known = [*grammar.current, *drawn.tolist()]
        found = dict(zip(cells.tolist(), known, strict=False))
        for cell in cells[len(known) : place + num].tolist():
            found[cell] = found.get(cell - self._columns, known[-1])
            known.append(found[cell])
        return np.array(known[place:], np.int32)


@dataclass(frozen=True, eq=False)
class Ahead:
    """Hidden states and guesses read ahead of the accepted tokens.

    Args:
        hidden_SwE: hidden states after the last accepted token and after each guess.
        guess_nk: int32, k = w - 1; -1 after a request's last guess.
        drawn: tokens [n, w] and their log-probabilities, if they were drawn in the same pass.
    """

    hidden_SwE: Tensor
    guess_nk: IntArray
    drawn: tuple[Tensor, Tensor] | None = None

    def accepted(self, tokens_nw: IntArray, most_n: Sequence[int]) -> list[int]:
        """The number of drawn tokens to accept for each request: up to and including the first that differs from its
        guess, and at most `most_n`."""
        right_nk = np.logical_and.accumulate(tokens_nw[:, :-1] == self.guess_nk, axis=1)
        counts: list[int] = np.minimum(1 + right_nk.sum(axis=1), most_n).tolist()
        return counts


def read_ahead(
    decoder: InferenceDecoder,
    cache: KVCache,
    queues: Sequence[tuple[IntArray, IntArray]],
    ahead: Sequence[tuple[IntArray, IntArray]],
) -> tuple[Tensor, Tensor]:
    """Feed each row its tokens and the guesses after them in one forward pass; only the tokens advance the cache.

    Args:
        decoder: reads them.
        cache: of its rows.
        queues: tokens and cells of each row, at least one.
        ahead: guesses and cells of each row, possibly empty.

    Returns:
        hidden states after each row's last token [S, E], and after it and each guess [S, w, E]; those after a
        row's last guess are meaningless.
    """
    counts = [len(tokens) for tokens, _ in queues]
    together = [
        [np.concatenate(pair) for pair in zip(own, guessed, strict=True)]
        for own, guessed in zip(queues, ahead, strict=True)
    ]
    tokens_BT, cells_BT = padded([one[0] for one in together], [one[1] for one in together])
    device = decoder.device
    hidden_BTE = decoder.hidden_states_ahead(
        tokens_BT.to(device), cells_BT=cells_BT.to(device), cache=cache
    )
    cache.advance(counts)
    wide = 1 + max(len(tokens) for tokens, _ in ahead)
    at_Bw = torch.tensor(counts)[:, None] - 1 + torch.arange(wide)
    at_Bw = at_Bw.clamp(max=hidden_BTE.shape[1] - 1).to(device)
    hidden_SwE = hidden_BTE[torch.arange(len(counts), device=device)[:, None], at_Bw]
    return hidden_SwE[:, 0], hidden_SwE
