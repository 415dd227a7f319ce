"""Device and precision of training: see `cm3run.devices`, which generation uses as well."""

from cm3run.devices import choose_device, choose_precision, device_memory

__all__ = ["choose_device", "choose_precision", "device_memory"]
