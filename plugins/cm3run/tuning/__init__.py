"""Tuning a trained model in part: which of its parameters are trained, and adapters beside them.

selection   names and methods of the section `tune` to parameters; the rest is frozen
adapters    LoRA and DoRA by peft: added to a decoder, stored in peft's files, merged

Adapters need the extra `lora`. Nothing here knows a decoder: parameters are found by their names, by
their groups (`Decoder.parameter_groups`) and by the head (`Decoder.head_weight`).
"""

from cm3run.tuning.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    AdapterFiles,
    add_adapters,
    load_adapters,
    merge_adapters,
    write_adapters,
)
from cm3run.tuning.selection import select_parameters

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "AdapterFiles",
    "add_adapters",
    "load_adapters",
    "merge_adapters",
    "select_parameters",
    "write_adapters",
]
