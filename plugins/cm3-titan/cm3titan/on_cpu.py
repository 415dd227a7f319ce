"""torchtitan on a CPU, to try out and test what later runs on GPUs.

torchtitan takes its device from the machine when it is imported, and knows accelerators only. Here it is told "cpu", and
what it asks of an accelerator (its name, its memory) is answered.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cm3core.errors import DeviceError


class _Host:
    """What torchtitan asks of `torch.cuda`, for the host."""

    def get_device_name(self, device: object = None) -> str:
        return "cpu"

    def get_device_properties(self, device: object = None) -> Any:
        return SimpleNamespace(name="cpu", total_memory=1)

    def current_device(self) -> int:
        return 0

    def memory_stats(self, device: object = None) -> dict[str, int]:
        return {}

    def reset_peak_memory_stats(self) -> None:
        """The host keeps no such numbers."""

    def empty_cache(self) -> None:
        """The host has no such cache."""

    def synchronize(self) -> None:
        """The host waits for itself."""


def use_cpu() -> None:
    """Let torchtitan, once it is imported in this process, run on the CPU.

    Raises:
        DeviceError: it was imported for another device.
    """
    known = sys.modules.get("torchtitan.tools.utils")
    if known is not None and known.device_type != "cpu":
        raise DeviceError(
            "torchtitan",
            f"was imported for {known.device_type}, and keeps that device",
            "start a new process",
        )
    with patch("torch._utils._get_available_device_type", lambda: "cpu"):
        import torchtitan.components.metrics as metrics
        import torchtitan.distributed.utils as utils
    metrics.device_module = _Host()
    utils.set_pg_timeouts = _keep_timeouts


def _keep_timeouts(timeout: object, parallel_dims: object) -> None:
    """Instead of torchtitan's, which needs a barrier of devices: gloo keeps the limit that it was made with."""
