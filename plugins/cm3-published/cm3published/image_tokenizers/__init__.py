"""Image tokenizers that others publish: taming-transformers, latent diffusion, Chameleon, LlamaGen,
IBQ, MoVQGAN, Emu3, DALL-E.

One network, which is the VQGAN's, with four quantisers and Emu3's layers over time (`model.py`), and several ways to
name its tensors (`names.py`). DALL-E's network is another (`dvae.py`). `config.py` lists the published files,
`tokenizer.py` reads them. This module is light: no torch here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What must be known of a file before it is read.

    Args:
        num_codes: of its codebook.
        downsampling: pixels per side of one code.
        resolution: pixels per side of the pictures that it was trained on.
        quantizer: "l2" (nearest code), "l2_normalized" (nearest on the unit sphere), "dot" (largest
            inner product) or "gumbel" (largest of the logits that a layer computes).
        file: what its publisher calls it.
        network: "vqgan", "movq" (norms of the decoder see the latent), "emu3" (that, with layers over
            time, for videos) or "dvae" (DALL-E's).
    """

    num_codes: int
    downsampling: int
    resolution: int
    quantizer: str
    file: str
    network: str = "vqgan"
