"""Measure the upscalers by `cm3 upscaler eval`, and write docs/figures/upscalers.json: `python docs/_upscalers.py`
(a few minutes of one core). `python docs/_generate.py` then writes the table of decoding.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).parent / "figures" / "upscalers.json"
ICONS = ["icons", "dataset.image_size=256", "--split", "unseen", "--num", "200"]
#: Pictures, upscaler -> arguments of `cm3 upscaler eval`.
RUNS = {
    ("emoji", "edsr"): [
        *("upscaler-emoji256", "upscaler.weights=bundled:emoji256", "--split", "unseen")
    ],
    ("icons", "ink"): ICONS,
    ("icons", "edsr"): [*ICONS, "upscaler=edsr"],
}
ROW = re.compile(r"^(\w[\w ]*?) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", re.MULTILINE)


def measured(arguments: list[str], folder: str) -> dict[str, dict[str, dict[str, float]]]:
    """PSNR and SSIM of Lanczos and of the upscaler, by what the small pictures are."""
    cm3 = str(Path(sys.executable).with_name("cm3"))
    command = [cm3, "upscaler", "eval", *arguments, "-o", f"{folder}/a.png"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for sort, *numbers in ROW.findall(printed):
        lanczos_psnr, psnr, lanczos_ssim, ssim = map(float, numbers)
        found[sort] = {
            "lanczos": {"psnr": lanczos_psnr, "ssim": lanczos_ssim},
            "upscaler": {"psnr": psnr, "ssim": ssim},
        }
    return found


if __name__ == "__main__":
    figures: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as work:
        for (pictures, name), its_arguments in RUNS.items():
            figures.setdefault(pictures, {})[name] = measured(its_arguments, work)
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)
