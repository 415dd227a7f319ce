"""Settings of `places`: plain values that need no registry, recipe or torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings


@dataclass(kw_only=True)
class PlacesSettings(CM3LeonSettings):
    """Those of `cm3leon`, and how the codes of a place are predicted.

    Args:
        codes_per_place: codes of a place, the image tokenizer's depth.
        place_units: width of the hidden layer of a network through which a code sees those before it in its place: two
            layers, whose inputs are the state that predicts the place and the sum of the embeddings of those codes.
            RQ-Transformer (Lee et al. 2022, arXiv:2203.01941) has a transformer there. 0: they do not see each other.
        slot_codes: number of codes of each slot, see `cm3 describe image_tokenizer`: the loss of a code then covers its
            slot alone, among which it is drawn, and the head costs less. Empty: the loss covers all ids.
    """

    codes_per_place: int = 4
    place_units: int = 0
    slot_codes: list[int] = field(default_factory=list)
