"""Complete sets by things that they have, judged, for docs/complete.md:

    python docs/_completing.py [--model MODEL] [--split missing] [--num 40] [--candidates 4] FOLDER "TITLE"

Runs `cm3 complete SET NAME... --draw --judge` for each set that is held out whole, on things of its split `missing`, into a
folder each; or, with --split restyle, for each set that was trained on; or, with --split variant, for each of its styles, on
things that it has in another style. The same command resumes. The sets' own drawings are judged, too. With --picture, the
first things of the last set are drawn into docs/images/complete.png.
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
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3icons import COMPLETING_MODEL
from cm3icons.complete.documents import picture_of
from cm3icons.complete.judging import told
from cm3icons.complete.sets import open_set
from cm3icons.data import IconSourceConfig
from cm3icons.data.corpus import IconEntry
from cm3icons.evaluation.usable import Asked, icon_judge

FILE = Path(__file__).parent / "figures" / "completing.json"
PICTURE = Path(__file__).parent / "images" / "complete.png"
#: Things of the picture, and its colours.
SHOWN, _COLOURS = 8, 32
FAULTS = ("thing", "hand", "copy", "usable")


def sets_of(split: str) -> list[str]:
    """The sets to complete: those held out whole, or those that have things of another split."""
    found = IconSourceConfig(split="strangers" if split == "missing" else split, styles=["-colour"])
    source = found.build()
    names = sorted({source.id(index).split("/")[0] for index in range(len(source))})
    return [name for name in names if has_hand(name)]


def has_hand(name: str) -> bool:
    """Whether a set can be completed: one whose drawings all have masks can't."""
    try:
        open_set(name, IconSourceConfig(), None, None)
    except DataError as error:
        print(f"left out: {error}")
        return False
    return True


def things_of(set_name: str, num: int, split: str = "missing") -> dict[str, list[str]]:
    """Style -> some of a set's things in it that models were not shown, spread over them: in the set's most frequent style,
    or, of `variant`, in all."""
    entries = entries_of(set_name, split)
    styles = Counter(one.style for one in entries_of(set_name, "all"))
    of_all = [style for style, _ in styles.most_common(None if split == "variant" else 1)]
    cases = sorted({(one.style, one.words) for one in entries if one.style in of_all})
    chosen = np.linspace(0, len(cases) - 1, min(num, len(cases))).round().astype(int)
    found: dict[str, list[str]] = {}
    for place in chosen:
        style, words = cases[place]
        found.setdefault(style, []).append(words)
    return found


def entries_of(set_name: str, split: str) -> list[IconEntry]:
    """A set's drawings in one paint, of a split."""
    source = IconSourceConfig(split=split, sets=[set_name], styles=["-colour"]).build()
    return [source.entry(index) for index in range(len(source))]


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


def real_of(name: str, style: str, things: list[str]) -> list[dict[str, Any]]:
    """The judge's verdicts of a set's own drawings."""
    own = open_set(name, IconSourceConfig(), style, None)
    places = [place for place in map(own.index, things) if place is not None]
    asked = [
        Asked(own.source.group(place), name, own.style, own.source.id(place)) for place in places
    ]
    pictures = [picture_of(own.source.document(place)) for place in places]
    return [told(one) for one in icon_judge().judge(pictures, asked, [[]] * len(places))]


def summary(rows: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    """Percent of verdicts, with standard errors, and their number."""
    scores = {
        name: [100 * float(np.mean(values)), 100 * float(np.std(values)) / len(values) ** 0.5]
        for name in names
        for values in [[bool(row[name]) for row in rows]]
    }
    return {"num": len(rows), "scores": scores}


def worse(candidate: dict[str, Any]) -> float:
    """As `cm3 complete` sorts candidates."""
    likeness = candidate.get("likeness")
    return float(candidate["nats"]) if likeness is None else -float(likeness)


def complete(
    name: str, style: str, things: list[str], given: argparse.Namespace, out: Path
) -> None:
    """Run `cm3 complete`."""
    command = ["complete", name, *things, "--style", style, "--draw", "--judge"]
    command += ["-n", str(given.candidates), "--model", given.model, "--threads", "1"]
    if cm3([*command, "-o", str(out)]):
        raise SystemExit(f"{name}: cm3 complete failed")


def main() -> None:
    """Complete the sets and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=COMPLETING_MODEL)
    parser.add_argument("--split", choices=("missing", "restyle", "variant"), default="missing")
    parser.add_argument("--num", type=int, default=40, help="things of each set")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("folder", type=Path)
    parser.add_argument("title", help="of the row")
    given = parser.parse_args()
    sets = sets_of(given.split)
    rows: list[dict[str, Any]] = []
    adapted: list[dict[str, Any]] = []
    real: list[dict[str, Any]] = []
    for name in sets:
        for style, things in things_of(name, given.num, given.split).items():
            out = given.folder / f"{name} {style}"
            complete(name, style, things, given, out)
            report = json.loads((out / "report.json").read_text("utf-8"))
            rows += scores_of(report)
            adapted += adapted_of(report)
            real += real_of(name, style, things)
    if given.picture:
        out = given.folder / "picture"
        complete(name, style, things[:SHOWN], given, out)
        sheet = Image.open(out / "sheet.png").convert("RGB")
        sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    known = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    own = known.setdefault(given.split, {"models": {}})
    own["sets"], own["candidates"] = sets, given.candidates
    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        kind = kinds.setdefault(row["kind"], {"num": 0, "usable": 0})
        kind["num"], kind["usable"] = kind["num"] + 1, kind["usable"] + row["usable"]
    for one in adapted:
        one["both"] = one["thing"] and one["hand"]
    own["models"][given.title] = summary(rows, *FAULTS, "any") | {
        "kinds": kinds,
        "adapted": summary(adapted, "thing", "hand", "both"),
    }
    own["real"] = summary(real, *FAULTS)
    write_text(FILE, json.dumps(known, indent=1) + "\n")
    print(json.dumps(own["models"][given.title]))


if __name__ == "__main__":
    main()
