"""Write the tables and pictures of docs/quickstart.md from a run of `cm3 quickstart`:

    cm3 quickstart -o FOLDER
    python docs/_quickstart.py FOLDER

The tables are those of the run's report, from its `training.json` and `drawn.json`.
`tests/docs/test_quickstart_page.py` checks that the page has a place for each.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3apps.quickstart.report import (
    caption_rows,
    loss_rows,
    picture_rows,
    repair_rows,
    run_rows,
)

PAGE = Path(__file__).parent / "quickstart.md"
IMAGES = Path(__file__).parent / "images"
#: Pictures of a run's folder that the page shows, and their names there.
PICTURES = {
    "pictures-unseen.png": "quickstart-unseen.png",
    "pictures-compose.png": "quickstart-compose.png",
    "pictures-comp.png": "quickstart-comp.png",
    "captions-comp.png": "quickstart-captions.png",
    "inpainted-comp.png": "quickstart-inpainted.png",
}


def page(text: str, training: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """Return the page with its tables made anew.

    Args:
        text: the page.
        training: as in training.json.
        drawn: as in drawn.json.
    """
    tables: dict[str, Sequence[str]] = {
        "run": run_rows(dict(training), dict(drawn)),
        "pictures": picture_rows(dict(drawn)),
        "captions": caption_rows(dict(drawn)),
        "inpainted": repair_rows(dict(drawn)),
        "losses": loss_rows(dict(training)),
    }
    for name, rows in tables.items():
        start = text.index("\n", text.index(f"<!-- table: {name}, ")) + 1
        end = text.index("<!-- end -->", start)
        text = text[:start] + "".join(f"{row}\n" for row in rows) + text[end:]
    return text


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = [
        json.loads((folder / name).read_text("utf-8")) for name in ("training.json", "drawn.json")
    ]
    PAGE.write_text(page(PAGE.read_text("utf-8"), *found), encoding="utf-8")
    for name, shown in PICTURES.items():
        shutil.copyfile(folder / name, IMAGES / shown)
