"""Tune the bundled model of coloured pictures on collections that the package doesn't have, in several ways, beside a model
trained from nothing in the same time, and write docs/figures/tuned.json: `python docs/_tuned.py FOLDER`. `python
docs/_generate.py` makes the table of docs/tuning.md of the file.

FOLDER is that of docs/_colour_codes.py. Each model is trained for `--minutes` on one thread, and drawn with by `cm3 eval` on at
most `NUM` held-out pictures, with the bundled model's sampler. The order is one seed after another, so `--seeds 0` measures a
first one; finished trainings and evaluations are only read again. `--part 1/2` and `--part 2/2` do half of the work each, to
run beside each other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _colour_codes import GROUNDS, data_of

from cm3apps.cli.main import main as cm3
from cm3core.config.schema import to_plain
from cm3core.files import write_text
from cm3core.plugins import load_registry
from cm3run.model import load

FILE = Path(__file__).parent / "figures" / "tuned.json"
BASE, NUM = "bundled:emoji64", 60
#: Arm -> what it changes. Learning rates are those of docs/tuning.md, and for `nothing` that of the bundled model.
ARMS = {
    "full": ["tune.method=full", "train.learning_rate=5e-4"],
    "lora": ["tune.method=lora", "train.learning_rate=3e-3"],
    "head": ["tune.method=head", "train.learning_rate=1e-3"],
    "nothing": ["train.learning_rate=3e-3"],
}
#: The score of `cm3 eval` -> its name in the file.
SCORES = {
    "image_nats": "nats",
    "judge_r5-blurred32": "r5",
    "training_copies": "copies",
    "training_nearness": "nearness",
    "blank": "blank",
}
#: Sections that a model from nothing has from the base.
KEPT = ("image_tokenizer", "embedder", "retriever", "objective", "decoder", "sampler", "vocabulary")


def recipe_of(dataset: Mapping[str, Any], *, whole: bool) -> str:
    """The recipe of a collection, in JSON; a whole one is the base's, without its weights and its text tokenizer's."""
    recipe: dict[str, Any] = {
        "dataset": dict(dataset),
        "train": {
            "batch_rows": 4,
            "warmup_steps": 10,
            "num_threads": 1,
            "sample_every_minutes": None,
            "validate_every_minutes": 0.5,
            "validation_splits": ["valid"],
            "patience": 5,
        },
    }
    if whole:
        base = load(BASE, registry=load_registry(), device="cpu").recipe
        plain = {name: to_plain(getattr(base, name)) for name in KEPT}
        named = {
            name: {"name": base.component_names[name], **keys}
            if name in base.component_names
            else keys
            for name, keys in plain.items()
        }
        text = {"name": "bpe", "vocab_size": 1024}
        length = {"data": {"max_text_tokens": base.data.max_text_tokens}}
        recipe = {
            "text_tokenizer": text,
            "attention": {"name": "sdpa"},
            **named,
            **length,
            **recipe,
        }
    return json.dumps(recipe, indent=1)


def measured(ground: str, folder: Path, arm: str, seed: int, out: Path, minutes: float) -> Any:
    """The scores of one model, and of real pictures and copies beside it."""
    run = out / f"{ground}-{arm}-{seed}"
    scores, trained = run / "scores" / "scores.json", run / "trained"
    if not scores.is_file():
        run.mkdir(parents=True, exist_ok=True)
        recipe = run / "recipe.yaml"
        text = recipe_of(data_of(ground, folder), whole=arm == "nothing")
        recipe.write_text(text, encoding="utf-8")
        begun = ["train"] if arm == "nothing" else ["tune", BASE]
        keys = [*ARMS[arm], f"train.seed={seed}"]
        command = [*begun, str(recipe), "-o", str(run / "run"), "--minutes", f"{minutes:g}", *keys]
        if not trained.is_file():
            assert cm3([*command, "--quiet"]) == 0
            trained.touch()
        command = ["eval", str(run / "run"), str(recipe), "--num", str(NUM)]
        command += ["--threads", "1", "-o", str(run / "scores")]
        assert cm3(command) == 0
    found = {row["name"]: row for row in json.loads(scores.read_text(encoding="utf-8"))["scores"]}
    state = json.loads(
        max((run / "run" / "checkpoints").glob("*/state.json")).read_text(encoding="utf-8")
    )
    return {
        "steps": state["step"],
        "num": found["training_copies"]["num"],
        **{name: found[score]["value"] for score, name in SCORES.items() if score in found},
        "beside": {
            name: found[score]["beside"]
            for score, name in SCORES.items()
            if score in found and "beside" in found[score]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways of tuning, on coloured pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="1/1", metavar="N/ALL")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    figures: dict[str, Any] = {"minutes": args.minutes, "base": BASE, "grounds": {}}
    every = [(seed, ground, arm) for seed in args.seeds for ground in GROUNDS for arm in ARMS]
    for number, (seed, ground, arm) in enumerate(every):
        if number % parts == part - 1:
            own = measured(ground, args.folder, arm, seed, args.out, args.minutes)
            print(ground, arm, seed, json.dumps(own), flush=True)
            arms = figures["grounds"].setdefault(ground, {})
            arms.setdefault(arm, []).append({"seed": seed, **own})
    if parts == 1:
        write_text(FILE, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
