"""`places`: config of a decoder that predicts all codes of a place together. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_value
from cm3core.vocab import Vocabulary
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.places.settings import PlacesSettings

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend
    from cm3plugins.decoders.places.model import PlacesDecoder


@dataclass(kw_only=True)
class PlacesConfig(PlacesSettings, CM3LeonConfig):
    """The decoder `cm3leon`, with one position for all codes of a place of a picture.

    The input of a place is the sum of its codes' embeddings, and its output predicts all codes of the next place: the
    "parallel" pattern of MusicGen (Copet et al. 2023, arXiv:2306.05284, section 2.2), as the factorised heads of bitwise
    tokenizers do (Infinity, arXiv:2412.04431, section 3.2). A picture of R x C places with k codes each costs R * C
    forwards instead of R * C * k. Codes of one place do not see each other, so the decoder can't represent their
    dependence within a place, unless `place_units` adds a small network that reads them; `cm3leon` predicts them one
    after the other.

    Each slot of a place needs codes of its own (`CodeRules.by_slot`), because the rows of the head that belong to a
    slot's codes are its own head.
    """

    training_keys: ClassVar[tuple[str, ...]] = (*CM3LeonConfig.training_keys, "slot_codes")
    later_keys: ClassVar[tuple[str, ...]] = (
        *CM3LeonConfig.later_keys,
        "place_units",
        "slot_codes",
    )
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **CM3LeonConfig.ranges,
        "codes_per_place": (1, 1024),
        "place_units": (0, 2**20),
        "slot_codes": (1, 2**24),
    }

    @property
    def codes_together(self) -> int:  # type: ignore[override]  # each config has its own
        """`codes_per_place`."""
        return self.codes_per_place

    def check(self) -> None:
        """As `cm3leon`, without `code_axes`; raises a `RecipeError` that names the key."""
        super().check()
        check_value(
            "decoder.code_axes",
            self.code_axes,
            not self.code_axes,
            "leave it out, or use the decoder cm3leon",
            must_be="empty: a place has one input for all of its codes",
        )
        check_value(
            "decoder.slot_codes",
            self.slot_codes,
            len(self.slot_codes) in (0, self.codes_per_place),
            "give a number for each code of a place, or leave it out",
            must_be=f"{self.codes_per_place} numbers, as decoder.codes_per_place",
        )

    def slots(self, vocabulary: Vocabulary) -> tuple[range, ...]:
        """Ids of each slot, none without `slot_codes`; raises `RecipeError` if they are not those of the vocabulary."""
        if not self.slot_codes:
            return ()
        if sum(self.slot_codes) != vocabulary.num_image or not vocabulary.codes_in_order:
            raise RecipeError(
                "decoder.slot_codes",
                f"are {self.slot_codes}, {sum(self.slot_codes):,} in all, and pictures have "
                f"{vocabulary.num_image:,} codes"
                + ("" if vocabulary.codes_in_order else ", whose ids are in another order"),
                "give the sizes of the image tokenizer's slots, or leave it out",
            )
        ends = list(accumulate(self.slot_codes, initial=vocabulary.image.start))
        return tuple(range(start, stop) for start, stop in pairwise(ends))

    def places(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of places of a grid of (rows, codes per row); raises `RecipeError` if they don't divide."""
        if grid[1] % self.codes_per_place:
            raise RecipeError(
                "decoder.codes_per_place",
                f"is {self.codes_per_place}, and pictures have {grid[1]} codes per row",
                "use the number of codes per place of the image tokenizer, or the decoder cm3leon",
            )
        return grid[0], grid[1] // self.codes_per_place

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int:
        """Number of parameters of the decoder that `build` returns, by arithmetic."""
        place = 3 * self.d_model * self.place_units
        return super().num_parameters(vocabulary, self.places(grid)) + place

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> PlacesDecoder:
        """The decoder, initialised from torch's global generator on torch's default device."""
        from cm3plugins.decoders.places.model import PlacesDecoder

        self.check()
        return PlacesDecoder(
            self, vocabulary.size, attention, self.places(grid), self.slots(vocabulary)
        )
