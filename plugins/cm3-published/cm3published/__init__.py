"""Published models: their layouts, decoder, image tokenizers, sampler and tasks, and `cm3 convert`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import DecoderConfig
    from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
    from cm3core.interfaces.layout import LayoutConfig
    from cm3core.interfaces.sampler import SamplerConfig
    from cm3core.interfaces.task import TaskConfig

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"convert": "cm3published.convert.command:configure"}


@hookimpl
def cm3_decoders() -> Mapping[str, type[DecoderConfig]]:
    from cm3published.decoders import GlmImageDecoderConfig

    return {"glm_image": GlmImageDecoderConfig}


@hookimpl
def cm3_image_tokenizers() -> Mapping[str, type[ImageTokenizerConfig]]:
    from cm3published.image_tokenizers import config as public
    from cm3published.image_tokenizers.glm_config import GlmImageVQConfig

    return {
        "chameleon": public.ChameleonVQConfig,
        "dall_e": public.DalleConfig,
        "emu3": public.Emu3VQConfig,
        "glm_image": GlmImageVQConfig,
        "ibq": public.IBQConfig,
        "ldm": public.LDMConfig,
        "llamagen": public.LlamaGenVQConfig,
        "movq": public.MoVQConfig,
        "taming": public.TamingConfig,
    }


@hookimpl
def cm3_layouts() -> Mapping[str, type[LayoutConfig]]:
    from cm3published.layouts.chameleon import ChameleonLayoutConfig, LuminaLayoutConfig
    from cm3published.layouts.emu3 import Emu3LayoutConfig
    from cm3published.layouts.emu3_5 import Emu35LayoutConfig
    from cm3published.layouts.glm_image import GlmImageLayoutConfig
    from cm3published.layouts.janus import JanusLayoutConfig
    from cm3published.layouts.llamagen import LlamaGenLayoutConfig

    return {
        "chameleon": ChameleonLayoutConfig,
        "emu3": Emu3LayoutConfig,
        "emu3_5": Emu35LayoutConfig,
        "glm_image": GlmImageLayoutConfig,
        "janus": JanusLayoutConfig,
        "llamagen": LlamaGenLayoutConfig,
        "lumina": LuminaLayoutConfig,
    }


@hookimpl
def cm3_samplers() -> Mapping[str, type[SamplerConfig]]:
    from cm3published.sampler import ChameleonSamplerConfig

    return {"chameleon": ChameleonSamplerConfig}


@hookimpl
def cm3_tasks() -> Mapping[str, type[TaskConfig]]:
    from cm3published.tasks import PUBLISHED_TASKS

    return PUBLISHED_TASKS
