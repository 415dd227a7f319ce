"""Device and precision of training: see `cm3core.devices`, which generation uses as well."""

from cm3core.devices import choose_device, choose_precision, device_memory

__all__ = ["choose_device", "choose_precision", "device_memory"]
