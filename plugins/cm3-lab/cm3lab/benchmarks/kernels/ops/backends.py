"""The registered attention backends as providers of `attention`: those of other plugins as `PLUGIN/NAME`, which is how a
recipe names them, ours as `cm3/NAME`. The backends that call `cm3kernels.attention` are left out, since the op's
implementations are providers themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.errors import CM3Error
from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3core.plugins.registry import Registry, built
from cm3kernels.attention import IMPLEMENTATIONS
from cm3run.benchmarks import BenchmarkRegistry, Case, Inputs, Provider, Where

#: Our backends that call the op.
OF_THE_OP = {*IMPLEMENTATIONS, "by_device"}


class BackendProvider(Provider):
    """An attention backend with its default config.

    Args:
        name: of the provider.
        address: of the backend, `PLUGIN/NAME`.
        registry: has the backend.
    """

    def __init__(self, name: str, address: str, registry: Registry) -> None:
        self.name, self._address, self._registry = name, address, registry
        self._backend: AttentionBackend | None = None

    def enabled(self, case: Case, where: Where) -> str | None:
        try:
            config = self._config().for_device(where.device.type)
            config.check()
            largest = config.largest_head_dim
            if largest is not None and case.parameters["D"] > largest:
                return f"supports head dimensions up to {largest}"
            if case.direction != "forward":
                config.check_training(where.device.type)
            self._backend = built(config.build(), config, self._registry)
        except CM3Error as error:
            return error.cause
        return None

    def _config(self) -> AttentionConfig:
        made = self._registry.config_class("attention", self._address)
        try:
            return cast(AttentionConfig, made())
        except TypeError as error:  # it has keys without defaults
            raise CM3Error(self._address, f"has no default config ({error})", "") from error

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        backend, T = self._backend, case.parameters["T"]
        assert backend is not None, "enabled comes first"
        starts = inputs["kv_start"]
        plan = backend.plan(num_queries=T, num_keys=T, kv_start_BT=starts)
        q, k, v = (inputs[name] for name in "qkv")
        return lambda: backend.attend(q, k, v, kv_start_BT=starts, plan=plan)


def add_backends(benchmarks: BenchmarkRegistry, registry: Registry) -> None:
    """Add every backend in the registry that isn't the op itself."""
    ours = {info.name for info in registry.plugins if info.distribution in OUR_DISTRIBUTIONS}
    for name in registry.names("attention"):
        for owner in registry.owners("attention", name):
            if owner in ours and name in OF_THE_OP:
                continue
            address = f"{owner}/{name}"
            shown = f"cm3/{name}" if owner in ours else address
            benchmarks.add_provider("attention", BackendProvider(shown, address, registry))
