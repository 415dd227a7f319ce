"""`cm3 generate --vary`: the same prompts and seeds under several values of one or two keys, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from cm3apps.cli.opening import settings_of
from cm3apps.sweep.grid import split_values
from cm3core.errors import GenerationError

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.model import Model
    from cm3run.model.results import GeneratedImage

#: Arguments of `Model.generate` that may be varied, in addition to `sampler.KEY`.
ARGUMENTS = ("sampler", "seed", "num_retrieved", "num_candidates", "reranker")


@dataclass(frozen=True)
class Axis:
    """A key and its values.

    Args:
        name: the key without `sampler.`; "" for the only column.
        values: each as text, and as arguments of `Model.image_jobs`.
    """

    name: str
    values: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def labels(self) -> list[str]:
        """A label for each value."""
        return [f"{self.name} {text}" for text, _ in self.values]


_ALONE = Axis("", (("", {}),))


@dataclass(frozen=True)
class Varied:
    """The cells: a row for each value of one key, a column for each of another.

    Args:
        down, across: the keys.
    """

    down: Axis
    across: Axis = _ALONE

    @classmethod
    def of(cls, texts: Sequence[str]) -> Varied:
        """The keys of one or two `--vary`.

        Raises:
            GenerationError: more than two, a key twice, or one that can't be varied.
        """
        axes = [_axis(text) for text in texts]
        if len(axes) > 2:
            raise GenerationError(
                "--vary", f"is given {len(axes)} times", "vary one key down and at most one across"
            )
        if len({axis.name for axis in axes}) < len(axes):  # the second key would win in every cell
            raise GenerationError(
                "--vary",
                f"names {axes[0].name} twice",
                "give all values of a key in one --vary",
            )
        return cls(*axes)

    def options(self) -> Iterator[dict[str, Any]]:
        """Arguments of each cell, row by row."""
        for (_, own), (_, other) in itertools.product(self.down.values, self.across.values):
            yield {**own, **other}

    def sheet(self, drawn: Sequence[Sequence[GeneratedImage]]) -> PixelArray:
        """All cells with their labels.

        Args:
            drawn: the pictures of each prompt in the first cell, then in the second, ...
        """
        from cm3run import sheets

        tiles = [_tile(prompts) for prompts in self._cells(drawn)]
        width = len(self.across.values)
        return sheets.grid(
            [tiles[start : start + width] for start in range(0, len(tiles), width)],
            row_labels=self.down.labels,
            column_labels=self.across.labels if self.across.name else None,
            scale=max(1, 128 // drawn[0][0].pixels.shape[0]),
        )

    def scores(
        self, drawn: Sequence[Sequence[GeneratedImage]], model: Model, reranker: str
    ) -> list[str]:
        """Lines with each cell's mean score."""
        means = [
            float(np.mean([model.score(picture, reranker) for own in prompts for picture in own]))
            for prompts in self._cells(drawn)
        ]
        width = len(self.across.values)
        lines = [f"mean {model.reranker(reranker).measure}"]
        lines.append("\t".join(["", *(text for text, _ in self.across.values)]))
        for place, (text, _) in enumerate(self.down.values):
            own = means[place * width : (place + 1) * width]
            lines.append("\t".join([text, *(f"{mean:.4f}" for mean in own)]))
        return lines

    def _cells(
        self, drawn: Sequence[Sequence[GeneratedImage]]
    ) -> list[Sequence[Sequence[GeneratedImage]]]:
        number = len(self.down.values) * len(self.across.values)
        each = len(drawn) // number
        return [drawn[start : start + each] for start in range(0, len(drawn), each)]


def _axis(text: str) -> Axis:
    """The key and values of an argument.

    >>> _axis("sampler.top_p=0.5,1")
    Axis(name='top_p', values=(('0.5', {'top_p': 0.5}), ('1', {'top_p': 1})))
    """
    key, equals, listed = text.partition("=")
    if not equals or not listed or not (key in ARGUMENTS or key.startswith("sampler.")):
        raise GenerationError(
            f"--vary {text}",
            f"is not sampler.KEY=A,B,... nor {', '.join(ARGUMENTS)}",
            "write e.g. --vary sampler.guidance_scale=1,1.5,3",
        )
    name = key.removeprefix("sampler.")
    values = split_values(f"--vary {text}", listed)
    return Axis(
        name,
        tuple((value, settings_of([f"sampler.{name}={value}"], "sampler")) for value in values),
    )


def _tile(prompts: Sequence[Sequence[GeneratedImage]]) -> PixelArray:
    """A cell: a row per prompt."""
    tiles = np.stack([np.stack([one.pixels for one in own]) for own in prompts])
    return rearrange(tiles, "rows columns h w rgb -> (rows h) (columns w) rgb")
