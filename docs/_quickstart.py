"""Store the tables and pictures of a run of `cm3 quickstart`, for docs/quickstart.md:

    cm3 quickstart -o FOLDER
    python docs/_quickstart.py FOLDER
    python docs/_generate.py

The tables are those of the run's report, from its `training.json` and `drawn.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3apps.quickstart.report import picture_rows, run_rows

FILE = Path(__file__).parent / "figures" / "quickstart.json"
IMAGES = Path(__file__).parent / "images"
#: Pictures of a run's folder that the page shows, and their names there.
PICTURES = {
    "pictures-unseen.png": "quickstart-unseen.png",
    "pictures-compose.png": "quickstart-compose.png",
    "pictures-comp.png": "quickstart-comp.png",
    "captions-comp.png": "quickstart-captions.png",
    "inpainted-comp.png": "quickstart-inpainted.png",
}


def rows_of(training: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The lines of the page's tables, by name.

    Args:
        training: as in training.json.
        drawn: as in drawn.json.
    """
    return {
        "run": run_rows(dict(training), dict(drawn)),
        "pictures": picture_rows(dict(drawn)),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = [
        json.loads((folder / name).read_text("utf-8")) for name in ("training.json", "drawn.json")
    ]
    rows = json.dumps(rows_of(*found), indent=1, ensure_ascii=False)
    FILE.write_text(rows + "\n", encoding="utf-8")
    for name, shown in PICTURES.items():
        shutil.copyfile(folder / name, IMAGES / shown)
