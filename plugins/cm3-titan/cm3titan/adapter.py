"""torchtitan's state-dict adapter: reads and writes the decoder's safetensors with our names.

What torchtitan calls "Hugging Face's format" is here a checkpoint of this framework. Each process reads only the parts
that it needs, divided in any way.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

from cm3titan.model import CM3LeonModel
from cm3titan.names import own_state, titan_state


class CheckpointAdapter(BaseStateDictAdapter):
    """Between `CM3LeonModel` and `model.safetensors`. No tensor is changed.

    Args:
        model_config: says whether the head is tied.
        hf_assets_path: not used.
    """

    def __init__(self, model_config: CM3LeonModel.Config, hf_assets_path: str | None) -> None:
        self.tied = model_config.enable_weight_tying
        self.hf_assets_path, self.fqn_to_index_mapping = hf_assets_path, None

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """By our names."""
        return own_state(state_dict, tied=self.tied)

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """By torchtitan's names."""
        return titan_state(hf_state_dict, tied=self.tied)

    def get_hf_storage_reader(
        self, path: str, from_quantized: bool = False
    ) -> HuggingFaceStorageReader:
        """Of a checkpoint's folder, or of its folder of parts."""
        return HuggingFaceStorageReader(path)
