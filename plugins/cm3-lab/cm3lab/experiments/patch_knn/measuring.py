"""Loss on held-out pictures when a model's probabilities are mixed with those of similar places in a memory.

Each code is predicted from the true codes before it. Besides the memory's places there is a control: the same share of
each code's overall frequency in the memory. Its gain is from smoothing, which helps an overconfident decoder
anyway.

Legend: D documents, P image tokens per document, V codes, K codes around a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cm3core.document import Codes, Document, ImageHole, IntArray, Text
from cm3core.interfaces import DocumentSource
from cm3core.interfaces.sampler_state import DrawState
from cm3plugins.samplers.patch_knn.database import AROUND
from cm3plugins.samplers.patch_knn.sampler import PatchKNNSampler, PatchKNNSettings
from cm3run.generation.engine import Request
from cm3run.generation.likelihood import forced_row
from cm3run.model import Model
from cm3run.progress import make_bar

#: Number of searches at a time.
_AT_ONCE = 256

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """Nats per image token: mean over pictures, and its difference from the decoder alone without documents, with
    its standard error over pictures."""

    documents: int
    mixed_with: str
    share: float
    nats: float
    difference: float
    error: float


class HeldOut:
    """Held-out pictures of a model.

    Args:
        model: model whose data set has the split.
        source: documents of the split.
        number: number of documents with one picture, spread evenly over the split.
    """

    def __init__(self, model: Model, source: DocumentSource, number: int) -> None:
        self.model, self.parts = model, model.components
        chosen = np.linspace(0, len(source), min(number, len(source)), endpoint=False)
        coded = [model.coded(source.document(int(index))) for index in chosen]
        self.documents = [
            document for document in coded if sum(isinstance(one, Codes) for one in document) == 1
        ]
        self.codes = [
            next(one.codes for one in document if isinstance(one, Codes))
            for document in self.documents
        ]

    def figures(
        self, sampler: PatchKNNSampler, shares: Sequence[float], numbers: Sequence[int]
    ) -> list[Figure]:
        """Return, for each number of prepended documents, the decoder alone and each share.

        Args:
            sampler: sampler with the memory's places.
            shares: shares of the memory.
            numbers: numbers of documents that the model's retriever finds by the text.
        """
        near = [self._of_places(sampler, codes) for codes in self.codes]
        frequency_V = frequencies(sampler)
        mixtures = {
            "places": near,
            "frequencies": [
                (inside, frequency_V[codes[inside]])
                for (inside, _), codes in zip(near, self.codes, strict=True)
            ],
        }
        figures: list[Figure] = []
        first: FloatArray | None = None
        for number in numbers:
            alone = self._of_decoder(number)
            nats = np.array([-np.log(own).mean() for own in alone])
            first = nats if first is None else first
            figures.append(_figure(number, "", 0.0, nats, first))
            for name, other in mixtures.items():
                for share in shares:
                    nats = np.array(
                        [
                            -np.log(mixed(own, *one, share)).mean()
                            for own, one in zip(alone, other, strict=True)
                        ]
                    )
                    figures.append(_figure(number, name, share, nats, first))
        return figures

    @torch.inference_mode()
    def _of_decoder(self, number: int) -> list[FloatArray]:
        """Return the decoder's probabilities of the true codes, float64 [P] per document."""
        parts, found = self.parts, []
        texts = [tuple(one for one in doc if isinstance(one, Text)) for doc in self.documents]
        retrieved: list[list[Document]] = [[] for _ in texts]
        if number and parts.retriever is not None:
            retrieved = [
                [self.model.coded(parts.memory.document(hit.index)) for hit in hits]
                for hits in parts.retriever.retrieve(texts, number)
            ]
        bar = make_bar(
            zip(self.documents, self.codes, retrieved, strict=True),
            total=len(texts),
            desc=f"decoder, {number} documents",
        )
        for document, codes, before in bar:
            drawn = tuple(ImageHole() if isinstance(one, Codes) else one for one in document)
            row = forced_row(
                "document",
                parts.serializer,
                Request(drawn, before),
                [parts.vocabulary.of_codes(codes)],
                variant=None,
                max_text_tokens=parts.recipe.data.max_text_tokens,
            )
            hidden_TE = parts.decoder.hidden_states(
                torch.from_numpy(row.tokens.astype(np.int64))[None],
                cells_BT=torch.from_numpy(row.cells.astype(np.int64))[None],
            )[0]
            logits_PV = parts.decoder.logits(
                hidden_TE[torch.from_numpy(row.places)], parts.vocabulary.image
            )
            code_P1 = torch.from_numpy(codes.astype(np.int64))[:, None]
            found.append(logits_PV.double().softmax(1).gather(1, code_P1)[:, 0].numpy())
        return found

    def _of_places(
        self, sampler: PatchKNNSampler, codes: IntArray
    ) -> tuple[npt.NDArray[np.bool_], FloatArray]:
        """Return which cells have surroundings, bool [P], and the memory's probabilities of their codes."""
        code_P = torch.from_numpy(codes.astype(np.int64))
        cell_P = torch.arange(len(code_P))
        state = DrawState(
            {},
            grid=self.parts.image_tokenizer.grid,
            cell_n=cell_P,
            codes_nC=code_P.expand(len(code_P), -1),
            drawn_nT=code_P[:, None][:, :0],
        )
        around_PK = state.codes_around(AROUND)
        inside_P = (around_PK >= 0).all(1)
        parts = [
            sampler.log_probabilities(around).exp().gather(1, code[:, None])[:, 0]
            for around, code in zip(
                around_PK[inside_P].split(_AT_ONCE), code_P[inside_P].split(_AT_ONCE), strict=True
            )
        ]
        return inside_P.numpy(), torch.cat(parts).double().numpy()


def mixed(
    own_P: FloatArray, inside_P: npt.NDArray[np.bool_], other_m: FloatArray, share: float
) -> FloatArray:
    """Mix probabilities where there are others.

    >>> mixed(np.array([0.5, 0.5]), np.array([False, True]), np.array([1.0]), 0.2).tolist()
    [0.5, 0.6]
    """
    result = own_P.copy()
    result[inside_P] = (1 - share) * own_P[inside_P] + share * other_m
    return result


def frequencies(sampler: PatchKNNSampler) -> FloatArray:
    """Return the share of each code in the memory, float64 [V]: all places, equally near."""
    everywhere = PatchKNNSampler(
        sampler.inner,
        sampler.database,
        first_code=0,
        settings=PatchKNNSettings(
            share=1.0, neighbours=len(sampler.database), scale=1e12, combine="sum"
        ),
    )
    anywhere = torch.zeros(1, len(AROUND), dtype=torch.int64)
    frequency_V: FloatArray = everywhere.log_probabilities(anywhere)[0].double().exp().numpy()
    return frequency_V


def _figure(
    documents: int, mixed_with: str, share: float, nats_D: FloatArray, first_D: FloatArray
) -> Figure:
    change_D = nats_D - first_D
    error = float(change_D.std(ddof=1) / len(change_D) ** 0.5) if len(change_D) > 1 else 0.0
    return Figure(documents, mixed_with, share, float(nats_D.mean()), float(change_D.mean()), error)
