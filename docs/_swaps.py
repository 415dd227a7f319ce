"""Draw images/swaps.png, the same prompts with one part of the bundled model changed at a time: `python docs/_swaps.py`.

Every row is `cm3 generate "fish, outline" "sailboat, filled" --n 3 --seed 1 --upscale` and the option above it. All pictures
are shown. It takes about a minute on one core.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from cm3apps.cli.main import main as cm3
from cm3core.document import PixelArray
from cm3run.sheets import grid

PICTURE = Path(__file__).parent / "images" / "swaps.png"
PROMPTS, NUM = ("fish, outline", "sailboat, filled"), 3
#: `--draw` generates what the retriever finds, too, instead of answering with the original; other retrievers find no
#: originals, and the command refuses the option.
ROWS = {
    "the model's own recipe: retriever hybrid, sampler cfg": ["--draw"],
    "--retriever bm25": ["--retriever", "bm25"],
    "--sampler cd_k": ["--draw", "--sampler", "cd_k"],
    "--set sampler.guidance_scale=1": ["--draw", "--set", "sampler.guidance_scale=1"],
    "--num-retrieved 0": ["--draw", "--num-retrieved", "0"],
}
_SIZE, _COLOURS = 128, 16


def pictures(options: list[str]) -> list[PixelArray]:
    """What the command generates with some options, enlarged, uint8 [128, 128, 3] each."""
    with TemporaryDirectory() as folder:
        common = ["--n", str(NUM), "--seed", "1", "--upscale", "-o", folder]
        if code := cm3(["generate", *PROMPTS, *common, *options]):
            raise SystemExit(code)
        paths = sorted(Path(folder).glob("*-large.png"))
        assert len(paths) == NUM * len(PROMPTS)
        return [
            np.asarray(Image.open(path).convert("RGB").resize((_SIZE, _SIZE))) for path in paths
        ]


def main() -> None:
    """Generate all rows and write the sheet."""
    rows = []
    for label, options in ROWS.items():
        strip = grid([pictures(options)], scale=1)
        rows.append(grid([[strip]], column_labels=[label], scale=1, gap=4, font_size=22))
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.quantize(_COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
