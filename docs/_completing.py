"""Complete sets of which nothing was trained by things that they have, judged, for docs/complete.md:

    python docs/_completing.py [--model MODEL] [--num 40] [--candidates 4] FOLDER "TITLE"

Runs `cm3 complete SET NAME... --draw --judge` for each set that is held out whole, on things of its split `missing`, into a
folder each; the same command resumes. With --picture, the first things of the last set are drawn into docs/images/complete.png.
`python docs/_generate.py` makes the table of docs/figures/completing.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3apps.cli.main import main as cm3
from cm3core.files import write_text
from cm3plugins.datasets.icons import IconSourceConfig
from cm3run import COMPLETING_MODEL

FILE = Path(__file__).parent / "figures" / "completing.json"
PICTURE = Path(__file__).parent / "images" / "complete.png"
#: Things of the picture, and its colours.
SHOWN, _COLOURS = 8, 32
FAULTS = ("thing", "hand", "copy", "usable")


def things_of(set_name: str, num: int) -> list[str]:
    """Some of a set's things in its most frequent style that models were not shown, spread over it."""
    every = IconSourceConfig(split="all", sets=[set_name], styles=["-colour"]).build()
    styles = Counter(every.entry(index).style for index in range(len(every)))
    [(style, _)] = styles.most_common(1)
    missing = IconSourceConfig(split="missing", sets=[set_name], styles=["-colour"]).build()
    entries = [missing.entry(index) for index in range(len(missing))]
    names = sorted({one.words for one in entries if one.style == style})
    chosen = np.linspace(0, len(names) - 1, min(num, len(names))).round().astype(int)
    return [names[place] for place in chosen]


def scores_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """For each thing its kind, what the judge says of the candidate that is first without it, and whether any is usable."""
    rows: list[dict[str, Any]] = []
    for entry in report["things"]:
        candidates = entry["candidates"]
        first = min(candidates, key=lambda one: (one["copy"], -round(one["paint"], 1), worse(one)))
        rows.append(
            {name: bool(first["verdict"][name]) for name in FAULTS}
            | {"any": any(one["verdict"]["usable"] for one in candidates), "kind": entry["kind"]}
        )
    return rows


def adapted_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The judge's verdicts of adapted versions, without that of copying."""
    return [one["adapted"]["verdict"] for one in report["things"] if one.get("adapted")]


def worse(candidate: dict[str, Any]) -> float:
    """As `cm3 complete` sorts candidates."""
    likeness = candidate.get("likeness")
    return float(candidate["nats"]) if likeness is None else -float(likeness)


def complete(name: str, things: list[str], given: argparse.Namespace, out: Path) -> None:
    """Run `cm3 complete`."""
    command = ["complete", name, *things, "--draw", "--judge", "-n", str(given.candidates)]
    if cm3([*command, "--model", given.model, "--threads", "1", "-o", str(out)]):
        raise SystemExit(f"{name}: cm3 complete failed")


def main() -> None:
    """Complete the sets and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=COMPLETING_MODEL)
    parser.add_argument("--num", type=int, default=40, help="things of each set")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("folder", type=Path)
    parser.add_argument("title", help="of the row")
    given = parser.parse_args()
    strangers = IconSourceConfig(split="strangers").build()
    sets = sorted({strangers.id(index).split("/")[0] for index in range(len(strangers))})
    rows: list[dict[str, Any]] = []
    adapted: list[dict[str, Any]] = []
    for name in sets:
        things = things_of(name, given.num)
        out = given.folder / name
        complete(name, things, given, out)
        report = json.loads((out / "report.json").read_text("utf-8"))
        rows += scores_of(report)
        adapted += adapted_of(report)
    if given.picture:
        out = given.folder / "picture"
        complete(name, things[:SHOWN], given, out)
        sheet = Image.open(out / "sheet.png").convert("RGB")
        sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    figures = {
        name: [100 * float(np.mean(values)), 100 * float(np.std(values)) / len(values) ** 0.5]
        for name in (*FAULTS, "any")
        for values in [[row[name] for row in rows]]
    }
    known = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"models": {}}
    known["sets"], known["candidates"] = sets, given.candidates
    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        own = kinds.setdefault(row["kind"], {"num": 0, "usable": 0})
        own["num"], own["usable"] = own["num"] + 1, own["usable"] + row["usable"]
    known["models"][given.title] = {"num": len(rows), "scores": figures, "kinds": kinds}
    known["models"][given.title]["adapted"] = {
        "num": len(adapted),
        "thing": sum(one["thing"] for one in adapted),
        "hand": sum(one["hand"] for one in adapted),
        "both": sum(one["thing"] and one["hand"] for one in adapted),
    }
    write_text(FILE, json.dumps(known, indent=1) + "\n")
    print(json.dumps(known["models"][given.title]))


if __name__ == "__main__":
    main()
