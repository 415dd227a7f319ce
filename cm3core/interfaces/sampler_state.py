"""The state of samplers: what a sampler keeps for each request, and the tokens each request has drawn.

The engine keeps the state, one row per request: it starts with the request, moves with it when
others join or leave the batch, is copied when a request is forked, and is dropped with it. A request
has one state, whatever its number of guidance streams; each candidate is a separate request.

Legend: n requests, C cells of a picture's grid, T tokens that can be drawn, K offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

from cm3core.document import Document
from cm3core.errors import GenerationError, close_match

if TYPE_CHECKING:
    from torch import Tensor

#: State of one request: name -> tensor of any shape, or the state of a wrapped sampler.
InitialState: TypeAlias = Mapping[str, Union["Tensor", "InitialState"]]


@dataclass(frozen=True, eq=False)
class RequestStart:
    """A request at its start.

    Args:
        seed: the request's; each candidate has its own.
        document: with its holes.
        retrieved: the documents that are prepended.
        grid: rows and columns of a picture's codes.
    """

    seed: int = 0
    document: Document = ()
    retrieved: Sequence[Document] = ()
    grid: tuple[int, int] = (0, 0)


class DrawState:
    """State of the requests of one `draw_with_state`: a table with a row for each.

    `state["name"]` is the tensor [n, ...] that `initial_state` calls "name"; assigning replaces
    it. It is a copy that takes effect only if the draw succeeds.

    Attributes:
        grid: rows and columns of a picture's codes.
        cell_n: int64; raster index of the cell to be drawn; -1 for text.
        codes_nC: int64; image codes (0..codebook size - 1) of the picture being filled, drawn or
            given; -1 for those not drawn yet.
        drawn_nT: int64; vocabulary ids drawn so far in all of the request's holes;
            -1 from the request's position on. T depends on the batch.
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        *,
        grid: tuple[int, int],
        cell_n: Tensor,
        codes_nC: Tensor,
        drawn_nT: Tensor,
        prefix: str = "",
    ) -> None:
        self._values, self._prefix = values, prefix
        self.grid, self.cell_n, self.codes_nC, self.drawn_nT = grid, cell_n, codes_nC, drawn_nT

    def __getitem__(self, name: str) -> Tensor:
        return self._values[self._known(name)]

    def __setitem__(self, name: str, value: Tensor) -> None:
        old = self._values[self._known(name)]
        if value.shape != old.shape or value.dtype != old.dtype or value.device != old.device:
            raise GenerationError(
                "sampler",
                f"sets {self._prefix + name!r} to {_form(value)}, but it started as {_form(old)}",
                "correct the sampler: shapes and types of a state must not change",
            )
        self._values[self._prefix + name] = value

    def part(self, name: str) -> DrawState:
        """The state of a wrapped sampler, which `initial_state` put under `name`.

        Assignments to it change the whole state. If there is no state under that name, it has only
        the drawn tokens, as needed by a wrapped sampler without state.
        """
        return DrawState(
            self._values,
            grid=self.grid,
            cell_n=self.cell_n,
            codes_nC=self.codes_nC,
            drawn_nT=self.drawn_nT,
            prefix=f"{self._prefix}{name}.",
        )

    def select(self, index_n: Tensor) -> DrawState:
        """A copy with these rows, int64; a row named more than once is forked."""
        return DrawState(
            {name: value[index_n] for name, value in self._values.items()},
            grid=self.grid,
            cell_n=self.cell_n[index_n],
            codes_nC=self.codes_nC[index_n],
            drawn_nT=self.drawn_nT[index_n],
            prefix=self._prefix,
        )

    def values(self) -> dict[str, Tensor]:
        """Every tensor by its full name ("inner.mu" for a wrapped sampler's "mu")."""
        return dict(self._values)

    def codes_around(self, offsets: Sequence[tuple[int, int]]) -> Tensor:
        """Codes at `offsets` (rows, columns) from the cell to be drawn, int64 [n, K].

        -1 outside the picture, for codes not drawn yet, and for requests that draw text.
        """
        import torch

        rows, columns = self.grid
        device = self.cell_n.device
        if not self.codes_nC.shape[1]:
            return torch.full((len(self.cell_n), len(offsets)), -1, device=device)
        down_K, right_K = torch.tensor(offsets, dtype=torch.int64, device=device).T
        row_nK = self.cell_n[:, None] // columns + down_K
        column_nK = self.cell_n[:, None] % columns + right_K
        inside_nK = (
            (self.cell_n[:, None] >= 0)
            & (row_nK >= 0)
            & (row_nK < rows)
            & (column_nK >= 0)
            & (column_nK < columns)
        )
        place_nK = (row_nK * columns + column_nK).where(inside_nK, 0)
        return self.codes_nC.gather(1, place_nK).where(inside_nK, -1)

    def _known(self, name: str) -> str:
        if self._prefix + name not in self._values:
            known = [
                key.removeprefix(self._prefix)
                for key in self._values
                if key.startswith(self._prefix)
            ]
            raise GenerationError(
                "sampler",
                f"its state has no {self._prefix + name!r}",
                f"return it from `initial_state`; {close_match(name, known)}"
                if known
                else "return it from `initial_state`",
            )
        return self._prefix + name


def flat_state(initial: InitialState, prefix: str = "") -> dict[str, Tensor]:
    """A request's state by full name: those of a wrapped sampler are "NAME.ITS_NAME".

    Raises:
        GenerationError: an invalid name, or a value that is neither a tensor nor a mapping.
    """
    import torch

    flat: dict[str, Tensor] = {}
    for name, value in initial.items():
        if not isinstance(name, str) or not name or "." in name:
            raise GenerationError(
                "sampler",
                f"its initial state has the name {name!r}",
                "name it with a text without dots",
            )
        if isinstance(value, torch.Tensor):
            flat[prefix + name] = value
        elif isinstance(value, Mapping):
            flat |= flat_state(value, f"{prefix}{name}.")
        else:
            raise GenerationError(
                "sampler",
                f"its initial state has {prefix + name!r} as {type(value).__name__}",
                "use a tensor, or the initial state of a wrapped sampler",
            )
    return flat


def stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack states of the same form, as new tensors with a row for each."""
    import torch

    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _form(value: Tensor) -> str:
    return f"{value.dtype} {list(value.shape)} on {value.device}"
