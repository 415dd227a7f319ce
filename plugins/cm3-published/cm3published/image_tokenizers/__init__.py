"""Image tokenizers that others publish: taming-transformers, latent diffusion, Chameleon, LlamaGen,
IBQ, MoVQGAN, Emu3, DALL-E.

One network, which is the VQGAN's, with four quantisers (`model.py`), several ways to name its tensors
(`names.py`), and Emu3's layers over time (`over_time.py`). DALL-E's network is another (`dvae.py`).
`config.py` lists the published files, `files.py` reads them.
"""
