"""Measure what prompts are answered with, among found, restyled and composed, and which least similarity tells things
apart: ``python docs/_answers.py [--num N]`` (some minutes of one core).

The prompts are captions of icons, and the memory is the icons of `train` without colour. What is right:

- `train`: found, the drawing is in the memory;
- `restyle`: restyled, the memory has the thing in other sets;
- `variant`: restyled or composed, the set has only another drawing of it;
- `strangers`: restyled if a name of the memory has the same words, otherwise restyled or composed: the set is unknown;
- `unseen` and `compose`: composed, the memory has nothing that shows it.

Half of each split's prompts, by a hash, choose `same_above`: the least value for which at most 1% of `unseen` and `compose`
are not composed, and at most 1% of all prompts without a drawing in the memory are found. The other half is counted.
`python docs/_answers.py` writes docs/figures/answers.json, and `python docs/_generate.py` makes the table of
docs/icons.md of it. The everyday prompts of `docs/_words.py` are counted, too; they choose nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from _words import everyday

from cm3core.document import text_of
from cm3icons.data import IconSourceConfig
from cm3icons.data.splits import unit_hash
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers import HybridRetrieverConfig

FILE = Path(__file__).parent / "figures" / "answers.json"
SPLITS = ("train", "restyle", "variant", "strangers", "unseen", "compose")
#: Splits whose drawings, and whose things, the memory lacks.
NO_DRAWING, NO_THING = SPLITS[1:], ("unseen", "compose")
#: The greatest share of prompts that may be answered with what the memory lacks.
MOST_WRONG = 0.01
#: Values of `same_above` to choose from.
CHOICES = [round(0.7 + 0.01 * step, 2) for step in range(30)]
Case = dict[str, Any]


def prompts(split: str, number: int) -> list[str]:
    """Captions of a split's icons without colour, one of a name, spread by a hash."""
    icons = IconSourceConfig(split=split, styles=["-colour"]).build()
    of_name: dict[str, str] = {}
    for index in sorted(range(len(icons)), key=lambda one: unit_hash("answers", icons.id(one))):
        of_name.setdefault(icons.group(index), text_of(icons.document(index)))
    return list(of_name.values())[:number]


def measured(number: int) -> dict[str, list[Case]]:
    """Of each split's prompts, and the everyday ones: the thing that is found, its similarity, and that of the nearest
    thing in the hand."""
    icons = IconSourceConfig(split="train", styles=["-colour"]).build()
    config = HybridRetrieverConfig(encoder=MiniLMConfig(), vectors="bundled:icons", same_above=0.0)
    retriever = config.build(icons, None)
    asked = {split: prompts(split, number) for split in SPLITS}
    asked["everyday"] = [prompt for prompt, _ in everyday()]
    found: dict[str, list[Case]] = {}
    for split, own in asked.items():
        found[split] = []
        for prompt in own:
            compared = retriever.compared(prompt)
            assert compared is not None
            answer = retriever.answered(compared, ())
            assert answer is not None
            in_hand = float(compared.thing_M[compared.in_hand_M].max(initial=-1.0))
            case = {"prompt": prompt, "thing": answer.thing}
            found[split].append(case | {"score": answer.score, "in_hand": round(in_hand, 6)})
        print(f"{split}: {len(found[split])} prompts", file=sys.stderr, flush=True)
    return found


def kind(case: Case, same_above: float) -> str:
    """The answer to a prompt."""
    if case["in_hand"] >= same_above:
        return "found"
    return "restyled" if case["score"] >= same_above else "composed"


def chooses(case: Case) -> bool:
    """Whether a prompt is of the half that chooses."""
    return unit_hash("half", case["prompt"]) < 0.5


def chosen(found: dict[str, list[Case]]) -> float:
    """The least value of `same_above` that keeps both rules on the half that chooses."""
    for same_above in CHOICES:
        kinds = {
            split: [kind(case, same_above) for case in found[split] if chooses(case)]
            for split in NO_DRAWING
        }
        things = [one for split in NO_THING for one in kinds[split]]
        drawings = [one for own in kinds.values() for one in own]
        wrong = (
            sum(one != "composed" for one in things) / len(things),
            sum(one == "found" for one in drawings) / len(drawings),
        )
        if max(wrong) <= MOST_WRONG:
            return same_above
    return CHOICES[-1]


def main() -> int:
    """Measure, choose, count and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=400, metavar="N", help="prompts of each split")
    parser.add_argument("--show", type=float, metavar="SAME_ABOVE", help="show wrong answers at it")
    args = parser.parse_args()
    found = measured(args.num)
    same_above = chosen(found)
    counts = {}
    for split, own in found.items():
        rest = [case for case in own if split == "everyday" or not chooses(case)]
        counts[split] = Counter(kind(case, same_above) for case in rest)
        for case in rest:
            wrong = kind(case, args.show or same_above) == "found" and split in NO_DRAWING
            if wrong or split == "everyday":
                print(f"{split}: {case['score']:.2f}, in hand {case['in_hand']:.2f}", end=" ")
                print(f"{case['prompt']!r}: {case['thing']!r}")
    for split, own_counts in counts.items():
        print(split, dict(own_counts))
    print(f"same_above: {same_above}")
    figures = {"same_above": same_above, "num": args.num, "counts": counts}
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
