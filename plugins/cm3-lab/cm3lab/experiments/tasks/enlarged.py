"""Icons of half the side, enlarged: by the model, beside plain enlarging and a network made for it."""

from __future__ import annotations

from functools import partial

import numpy as np

from cm3apps.evaluation.icons.drawing import reconstructed
from cm3core.document import PixelArray
from cm3core.images import fit
from cm3lab.experiments.tasks import asking
from cm3lab.experiments.tasks.drawn import Measured, Row, Setting
from cm3lab.experiments.tasks.records import chosen, records_of
from cm3plugins.datasets.icon_tasks.source import halved
from cm3plugins.upscalers import EDSRConfig
from cm3run.evaluation.image_tokenizer import psnr_per_picture


def enlarge(setting: Setting, split: str) -> Measured:
    """Pictures of half the side: how near the real one is what is drawn, and is the real one found?"""
    model, size = setting.model, setting.model.image_size
    source = records_of(setting.icons, "super_resolution", split)
    indices = chosen(source, setting.num, group=source.group)
    places = [source.icons_in_split[index] for index in indices]
    entries = [source.entries[place] for place in places]
    true = [setting.real[place] for place in places]
    small = [halved(picture) for picture in true]
    given = [fit(picture, size) for picture in small]
    calls = [
        partial(
            model.task_jobs,
            "super_resolution",
            {"source": picture},
            entry.words,
            seed=setting.seed + number,
            **setting.options,
        )
        for number, (picture, entry) in enumerate(zip(given, entries, strict=True))
    ]
    drawn = setting.keep(
        f"enlarge-{split}", lambda: asking.pictures(model, f"enlarge, {split}", calls)
    )
    network = EDSRConfig().build()
    looked_at: dict[str, list[PixelArray]] = {
        "reconstructed": list(reconstructed(model, true)),
        "enlarged": given,
        "edsr": [fit(network.upscale(picture), size) for picture in small],
        "drawn": list(drawn),
    }
    figures = {"real": setting.found(true, entries)}
    for name, pictures in looked_at.items():
        figures[name] = {"PSNR": psnr(pictures, true), **setting.found(pictures, entries)}
    rows: list[Row] = [
        (entry.words, [*tiles])
        for entry, *tiles in zip(
            entries, given, true, looked_at["edsr"], looked_at["drawn"], strict=True
        )
    ]
    return Measured(len(indices), figures, ["given", "real", "EDSR", "drawn"], rows)


def psnr(pictures: list[PixelArray], true: list[PixelArray]) -> float:
    """Mean over pictures, in dB."""
    return float(psnr_per_picture(np.stack(pictures), np.stack(true)).mean())
