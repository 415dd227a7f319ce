"""Image tokenizers that others publish: taming-transformers, latent diffusion, Chameleon, LlamaGen.

One network, which is the VQGAN's; four ways to name its tensors (`names.py`) and three quantisers
(`model.py`). `config.py` lists the published files.
"""
