"""Train image codes on coloured pictures that the package doesn't have, compare them with JPEG and WebP at the same bytes,
and write docs/figures/colour-codes.json: `python docs/_colour_codes.py FOLDER`. `python docs/_generate.py` makes the table
of docs/own-pictures.md of the file.

FOLDER has a folder for each collection, made by

    apt-get download openclipart-png tuxpaint-stamps-default oxygen-icon-theme
    for file in *.deb; do dpkg -x "$file" "${file%%_*}"; done
    npm pack flag-icons && tar xzf flag-icons-*.tgz && mv package flag-icons

Pictures that look alike are in one split. The codes are trained for `--minutes` on one thread, at `--side` pixels, and measured
on at most `NUM` held-out pictures; finished trainings are only measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cm3apps.cli._dataset import data_source
from cm3apps.cli.main import main as cm3
from cm3core.document import PixelArray
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.image_tokenizers.by_network import to_input
from cm3plugins.image_tokenizers.vqgan.trainer import PerceptualLoss
from cm3run.evaluation.beside_files import FORMATS, coded_bytes, files_of, plain_bytes
from cm3run.evaluation.quality import evaluate_image_tokenizer, psnr_per_picture, ssim_per_picture
from cm3run.picture_arrays import pictures_of

FILE = Path(__file__).parent / "figures" / "colour-codes.json"
GROUNDS = {
    "clipart": "openclipart-png",
    "stamps": "tuxpaint-stamps-default",
    "oxygen": "oxygen-icon-theme/usr/share/icons/oxygen/base/128x128",
    "flags": "flag-icons/flags/4x3",
}
#: Where flag-icons has the countries' names, and the file of captions that is made of it.
COUNTRIES, CAPTIONS = "flag-icons/country.json", "captions.csv"
RECIPE, NUM = "tokenizer-colour64", 300


def data_of(name: str, folder: Path) -> dict[str, Any]:
    """The keys of the data set of a collection below FOLDER."""
    path = folder / GROUNDS[name]
    keys: dict[str, Any] = {"name": "folder", "path": str(path.resolve())}
    if name == "stamps":
        keys["name"] = "tuxpaint"
    elif name == "flags":
        countries = json.loads((folder / COUNTRIES).read_text(encoding="utf-8"))
        with (path / CAPTIONS).open("w", encoding="utf-8", newline="") as file:
            rows = [(Path(one["flag_4x3"]).name, f"flag of {one['name']}") for one in countries]
            csv.writer(file).writerows([("image", "text"), *rows])
        keys["svg_size"] = 128
    else:
        keys["names_as_captions"] = True
    return {**keys, "split_by": "look", "valid": 0.1}


@cache
def network() -> PerceptualLoss:
    """Compares features of EfficientNet-Lite1, which no training uses; LPIPS's own weights can't be shipped."""
    return PerceptualLoss(variant="lite1")


def scored(pictures_NHWC: PixelArray, kept_NHWC: PixelArray) -> dict[str, float]:
    """Mean PSNR, SSIM and distance of features."""
    with torch.inference_mode():
        distances = [
            float(network()(to_input(kept_HWC[None]), to_input(picture_HWC[None])))
            for kept_HWC, picture_HWC in zip(kept_NHWC, pictures_NHWC, strict=True)
        ]
    return {
        "psnr": float(psnr_per_picture(pictures_NHWC, kept_NHWC).mean()),
        "ssim": float(ssim_per_picture(pictures_NHWC, kept_NHWC).mean()),
        "features": float(np.mean(distances)),
    }


def measured(name: str, folder: Path, side: int, out: Path, minutes: float) -> dict[str, Any]:
    """The codes of one collection, and files of as many bytes."""
    keys = data_of(name, folder)
    data = [
        f"dataset={keys.pop('name')}",
        f"image_tokenizer.resolution={side}",
        "train.num_threads=1",
    ]
    data += [f"dataset.{key}={json.dumps(value)}" for key, value in keys.items()]
    run = out / (name if side == 64 else f"{name}-{side}")
    command = ["tokenizer", "train-image", RECIPE, *data, "--minutes", f"{minutes:g}"]
    assert cm3([*command, "-o", str(run), "--quiet"]) == 0
    recipe = compose(
        RECIPE,
        [*data, f"image_tokenizer.weights={run / 'model.safetensors'}"],
        registry=load_registry(),
    )
    assert recipe.image_tokenizer is not None
    tokenizer = recipe.image_tokenizer.build()
    train = pictures_of(data_source(recipe, "train"), tokenizer.image_size)
    pictures = pictures_of(data_source(recipe, "valid"), tokenizer.image_size, NUM)
    codes = tokenizer.encode(pictures)
    kept = evaluate_image_tokenizer(tokenizer, pictures, codes).reconstructed_NHWC
    sizes = {
        "coded": coded_bytes(codes, tokenizer.form),
        "plain": plain_bytes(codes, tokenizer.form, tokenizer.codebook_size),
    }
    rows: dict[str, Any] = {"codes": scored(pictures, kept)}
    for kind, size in sizes.items():
        for form in FORMATS:
            files = files_of(pictures, form, size)
            if files is not None:
                rows[f"{form} {kind}"] = {
                    "bytes": files.size,
                    **scored(pictures, files.decoded_NHWC),
                }
    return {
        "pictures": len(train),
        "measured": len(pictures),
        "minutes": minutes,
        "bytes": sizes,
        **rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Codes of coloured pictures beside JPEG and WebP.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/colour-codes"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--grounds", nargs="+", choices=GROUNDS, default=list(GROUNDS))
    args = parser.parse_args()
    for name in args.grounds:
        own = measured(name, args.folder, args.side, args.out, args.minutes)
        figures = json.loads(FILE.read_text(encoding="utf-8"))  # others may have written meanwhile
        figures[name if args.side == 64 else f"{name}, {args.side} px"] = own
        FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(own), flush=True)


if __name__ == "__main__":
    main()
