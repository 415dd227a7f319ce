"""`vqgan`: the trainable VQGAN image tokenizer. Light: only the config is imported here."""

from cm3plugins.image_tokenizers.vqgan.config import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, VQGANTraining

__all__ = ["VQGANArchitecture", "VQGANConfig", "VQGANTraining"]
