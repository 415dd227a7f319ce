"""Bundled layouts: CM3leon's, and those of published models."""

from __future__ import annotations

from cm3core.interfaces.layout import LayoutConfig
from cm3plugins.layouts.chameleon import ChameleonLayoutConfig, LuminaLayoutConfig
from cm3plugins.layouts.cm3leon import CM3LeonLayoutConfig
from cm3plugins.layouts.emu3 import Emu3LayoutConfig
from cm3plugins.layouts.janus import JanusLayoutConfig
from cm3plugins.layouts.llamagen import LlamaGenLayoutConfig

#: Name in recipes -> config.
LAYOUTS: dict[str, type[LayoutConfig]] = {
    "chameleon": ChameleonLayoutConfig,
    "cm3leon": CM3LeonLayoutConfig,
    "emu3": Emu3LayoutConfig,
    "janus": JanusLayoutConfig,
    "llamagen": LlamaGenLayoutConfig,
    "lumina": LuminaLayoutConfig,
}
