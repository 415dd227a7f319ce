"""Store the losses of a training of `icons-svg`, and what evaluations of models scored, for docs/icons.md:

    python docs/_vectors.py RUN "title=EVALUATION" ...

RUN is the folder of `cm3 train icons-svg`; its curves go to docs/images/icons-svg-curves.png. An EVALUATION is a folder of `cm3
eval run MODEL icons-SPLIT-closed-v2`; several may have one title. `python docs/_generate.py` makes the table of
docs/figures/vectors.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

from cm3core.files import write_text

HERE = Path(__file__).parent
SCORES = ("usable", "thing", "thing_top5", "in_hand", "copied")
#: Split -> colour of its curves.
SPLITS = {"restyle": "tab:blue", "variant": "tab:orange", "unseen": "tab:green"}


def curves_of(run: Path) -> dict[str, Any]:
    """Tokens, and held-out nats a code without documents and with them, of each validation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "tokens": [],
        "hours": max(one.get("elapsed_s", 0) for one in lines) / 3600,
    }
    tokens = 0.0
    for one in lines:
        tokens = one.get("tokens", tokens)
        if "validation/restyle/image_loss" not in one:
            continue
        found["tokens"].append(tokens)
        for split in SPLITS:
            for kind in ("image_loss", "image_loss_retrieved"):
                found.setdefault(f"{split} {kind}", []).append(one[f"validation/{split}/{kind}"])
    return found


def scores_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The split and the scores of an evaluation: value and standard error, and those of real drawings."""
    whole = json.loads((folder / "scores.json").read_text())
    split = re.fullmatch(r"icons-(\w+)-closed-v\d+.*", whole["protocol"]["name"])
    assert split is not None, whole["protocol"]["name"]
    own = {one["name"]: one for one in whole["scores"] if one["name"] in SCORES}
    rows = {name: [own[name]["value"], own[name]["spread"]] for name in SCORES}
    real = {
        name: [own[name]["beside"]["real"], own[name]["beside_spread"]["real"]] for name in SCORES
    }
    return split[1], {"num": own["usable"]["num"], "drawn": rows, "real": real}


def draw(curves: dict[str, Any], path: Path) -> None:
    """The curves, dashed with documents."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for split, colour in SPLITS.items():
        for kind, style, what in (
            ("image_loss", "-", ""),
            ("image_loss_retrieved", "--", ", documents"),
        ):
            axes.plot(
                [tokens / 1e6 for tokens in curves["tokens"]],
                curves[f"{split} {kind}"],
                style,
                color=colour,
                label=f"{split}{what}",
            )
    axes.set_xlabel("million tokens")
    axes.set_ylabel("nats a code")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Store the file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("judged", nargs="+", metavar="title=EVALUATION")
    args = parser.parse_args()
    curves = curves_of(args.run)
    draw(curves, HERE / "images" / "icons-svg-curves.png")
    judged: dict[str, Any] = {}
    for one in args.judged:
        title, folder = one.split("=", 1)
        split, scores = scores_of(Path(folder))
        judged.setdefault(title, {})[split] = scores
    found = {"curves": curves, "judged": judged}
    write_text(HERE / "figures" / "vectors.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
