"""Published image tokenizers: taming-transformers, latent diffusion, Chameleon, LlamaGen, IBQ, MoVQGAN, Emu3,
DALL-E.

They share one network, the VQGAN's, with four quantisers and Emu3's layers over time (`model.py`), and differ in
tensor names (`names.py`). DALL-E has another network (`dvae.py`). `config.py` lists the published files,
`tokenizer.py` reads them. This module is light: no torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A checkpoint's copy of the weights.
SAVED = "model.safetensors"


@dataclass(frozen=True)
class Published:
    """Facts about a file that must be known before it is read.

    Args:
        num_codes: size of its codebook.
        downsampling: pixels per side of one code.
        resolution: side of its training pictures in pixels.
        quantizer: "l2" (nearest code), "l2_normalized" (nearest on the unit sphere), "dot" (largest
            inner product) or "gumbel" (largest of the logits computed by a layer).
        file: name of the published file.
        network: "vqgan", "movq" (the decoder's norms depend on the latent), "emu3" (the same, with layers over
            time, for videos) or "dvae" (DALL-E's).
    """

    num_codes: int
    downsampling: int
    resolution: int
    quantizer: str
    file: str
    network: str = "vqgan"
