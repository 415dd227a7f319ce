"""`vqgan`: the trainable VQGAN image tokenizer. Light: the config only; `build` and `train` import
what is heavy."""

from cm3plugins.image_tokenizers.vqgan.config import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, VQGANTraining

__all__ = ["VQGANArchitecture", "VQGANConfig", "VQGANTraining"]
