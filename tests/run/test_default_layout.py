"""The layout of recipes without the section: the one installed layout that says it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from cm3core.errors import PluginError
from cm3core.interfaces.layout import LayoutConfig
from cm3core.plugins import load_registry
from cm3core.plugins.registry import PluginInfo, Registry
from cm3core.recipe import compose
from cm3core.recipe.recipe import default_layout, layout_config
from cm3plugins.layouts.cm3leon import CM3LeonLayoutConfig
from cm3published.layouts.chameleon import ChameleonLayoutConfig
from messages import tells


@dataclass(kw_only=True)
class OtherConfig(LayoutConfig):
    """Claims to be it, too."""

    is_default: ClassVar[bool] = True


def with_layouts(**layouts: type[LayoutConfig]) -> Registry:
    registry = Registry()
    for plugin, config in layouts.items():
        registry.add(PluginInfo(plugin, "here", plugin), {"layout": {"own": config}}, {})
    return registry


def test_cm3leons_is_it() -> None:
    registry = load_registry()
    assert default_layout(registry) == default_layout() == CM3LeonLayoutConfig()
    recipe = compose("tiny", registry=registry)
    assert recipe.layout is None
    assert layout_config(recipe, registry) == CM3LeonLayoutConfig()
    other = compose("tiny", ["layout=chameleon"], registry=registry)
    assert layout_config(other, registry) == ChameleonLayoutConfig()


@pytest.mark.parametrize(
    ("layouts", "cause"),
    [
        ({}, "is not there, and no plugin"),
        (
            {"a": OtherConfig, "b": OtherConfig},
            "is not there ... a/own ... b/own",
        ),
    ],
)
def test_without_one_or_with_two_nothing_is_guessed(
    layouts: dict[str, type[LayoutConfig]], cause: str
) -> None:
    with pytest.raises(PluginError) as caught:
        default_layout(with_layouts(**layouts))
    assert tells(caught.value.cause, cause)
    assert caught.value.next_step.startswith("name a layout, or see 'cm3 plugin list'")
