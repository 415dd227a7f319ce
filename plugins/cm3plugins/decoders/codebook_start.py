"""Embeddings of image codes that start as the tokenizer's code vectors do: alike codes alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cm3core.errors import DocumentError
from cm3core.vocab import Vocabulary


def codebook_rows(codebook: Tensor, vocabulary: Vocabulary, width: int, std: float) -> Tensor:
    """The code vectors, centred, projected by a fixed random orthogonal matrix, and scaled.

    They are scaled as a whole, so that distances between codes keep their proportions.

    Args:
        codebook: floating [num_image, dim].
        vocabulary: whose image codes they are.
        width: of the embeddings.
        std: standard deviation of the result.

    Returns:
        Float64 [num_image, width], in the order of their ids.
    """
    if codebook.shape[0] != vocabulary.num_image:
        raise DocumentError(
            "codebook",
            f"{codebook.shape[0]} codes, the vocabulary has {vocabulary.num_image}",
            "use the image tokenizer that the vocabulary was made for",
        )
    dim = codebook.shape[1]
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(max(width, dim), max(width, dim), generator=generator, dtype=torch.float64)
    projection_CE = torch.linalg.qr(square).Q[:dim, :width]
    codes = codebook.detach().to("cpu", torch.float64)
    rows_E: Tensor = (codes - codes.mean(0)) @ projection_CE
    rows_E *= std / rows_E.std().clamp(min=1e-12)
    if vocabulary.codes_in_order:
        return rows_E
    ids = np.arange(vocabulary.image.start, vocabulary.image.stop)
    return rows_E[torch.from_numpy(vocabulary.to_codes(ids)).long()]
