"""`cm3 speedrun`: the rules one by one, the verdict by hand, and an entry end to end on a few icons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3apps.speedrun import entry as entries
from cm3apps.speedrun import rules
from cm3apps.speedrun.entry import Entry
from cm3apps.speedrun.rules import ICONS, Track, check_entry, verdict
from cm3core.errors import CM3Error, RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.build import build, source_of
from cm3run.training import TrainingInterrupted
from messages import tells

REGISTRY = load_registry()
RECIPES = Path(__file__).parents[3] / "recipes"


def broken(*overrides: str, track: Track = ICONS) -> str:
    recipe = compose("speedrun", list(overrides), registry=REGISTRY)
    with pytest.raises(RecipeError) as caught:
        check_entry(recipe, track, REGISTRY)
    return str(caught.value)


def test_the_shipped_entry_obeys_the_rules() -> None:
    """On the data and with the codes that the entries were made with."""
    recipe = compose("speedrun", registry=REGISTRY)
    check_entry(recipe, ICONS, REGISTRY)
    tokenizer = build(recipe, REGISTRY, stage="train").image_tokenizer
    assert tokenizer.fingerprint[:16] == ICONS.codes


def test_rules() -> None:
    assert tells(broken("dataset.sets=[ph]"), "dataset: is not that of recipe quickstart, ...")
    assert tells(
        broken("image_tokenizer.weights=null"), "image_tokenizer: is not that of recipe quickstart"
    )
    assert tells(
        broken("train.start_from=bundled:icons64-tuned"), "train.start_from: is set, ... weights"
    )
    assert tells(broken("train.num_threads=3"), "train.num_threads: is 3, and a speedrun has 2")
    assert tells(broken("retriever.bank=my/bank"), "retriever.bank: is set, ...")
    assert tells(
        broken(track=replace(ICONS, data="0" * 16)), "dataset: has the fingerprint ... 0000"
    )


def test_more_threads_than_a_recipe_names_are_not_used(tmp_path: Path) -> None:
    recipe = Entry(REGISTRY, tmp_path, ICONS, "speedrun", ("train.num_threads=null",)).recipe(5)
    assert (recipe.train.num_threads, recipe.train.seed) == (2, 5)
    assert recipe.train.validation_splits == list(ICONS.splits)


def run(nats: float, first_five: float, hand: float, minutes: float = 6.0) -> dict[str, Any]:
    return {
        "minutes": 2 * minutes,
        "core_minutes": minutes,
        "nats": nats,
        "scores": {"thing_top5": first_five, "in_hand": hand},
    }


def test_a_verdict_is_of_the_means_over_seeds() -> None:
    track = replace(ICONS, nats=2.0, scores={"thing_top5": 12.0, "in_hand": 50.0}, seeds=2)
    told = verdict([run(1.9, 10, 49, 5.0), run(2.1, 14, 51, 7.0)], track)
    assert (told.reached, told.core_minutes, told.nats) == (True, 6.0, (1.9, 2.1))
    told = verdict([run(2.02, 10, 49)], track)
    assert told.missed == (
        "the loss is 2.020 nats a code, and 2 is the goal",
        "thing_top5 is 10.0%, and at least 12% is the goal",
        "in_hand is 49.0%, and at least 50% is the goal",
        "1 of 2 seeds were run",
    )
    resumed = run(1.9, 14, 51) | {"core_minutes": None}
    told = verdict([run(1.9, 14, 51), resumed], track)
    assert told.missed == ("1 trainings were resumed, so that their time is not known",)


def test_rules_alone_are_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["speedrun", "--check", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "speedrun obeys the rules\n"
    assert main(["speedrun", "--check", "train.num_threads=8"]) == 2
    assert tells(capsys.readouterr().err, "error: train.num_threads: is 8, and ...")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Track:
    """A track of a few icons of one set."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    own = ["dataset.sets=[ph]", "dataset.things_share=0.05"]
    recipe = compose("quickstart", own, registry=REGISTRY)
    file = tmp_path / "few.yaml"
    text = (RECIPES / "quickstart.yaml").read_text(encoding="utf-8")
    start = text.index("  sets: [")
    end = text.index("\n\n", start)
    file.write_text(text[:start] + "  sets: [ph]\n  things_share: 0.05" + text[end:], "utf-8")
    data = source_of(recipe, REGISTRY).content_fingerprint[:16]
    return Track(
        str(file),
        data,
        ICONS.codes,
        documents=2,
        drawings=2,
        nats=20.0,
        scores={"in_hand": 0.0},
        seeds=2,
    )


SMALL = ("train.minutes=null", "train.steps=2", "train.log_every_steps=1", "train.compile=false")


def test_an_entry_is_recorded_and_not_run_twice(
    few: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seeds one after the other, with the losses of both splits; what is judged is another test's."""
    scores = dict.fromkeys(rules.JUDGED, 5.0)
    monkeypatch.setattr(Entry, "_judged", lambda self, model, folder: scores)
    out = tmp_path / "out"
    entry = Entry(REGISTRY, out, few, few.recipe, SMALL, "cm3 speedrun ...")
    told = entry.run([0, 1])
    assert told.reached
    found = json.loads((out / "record.json").read_text())
    assert [one["seed"] for one in found["runs"]] == [0, 1]
    for one in found["runs"]:
        lines = (out / f"seed-{one['seed']}" / "run" / "metrics.jsonl").read_text().splitlines()
        last = {name: own for line in lines for name, own in json.loads(line).items()}
        losses = [last[f"validation/{name}/image_loss_retrieved"] for name in few.splits]
        assert one["nats"] == pytest.approx(sum(losses) / 2)
        assert (one["steps"], one["scores"], one["core_minutes"] > 0) == (2, scores, True)
    assert found["runs"][0]["nats"] != found["runs"][1]["nats"]
    assert "restyle` and `variant`" in (out / "record.md").read_text()
    monkeypatch.setattr(entries.Entry, "_run", lambda *_: pytest.fail("it was run again"))
    assert entry.run([0, 1]) == told
    with pytest.raises(CM3Error, match="has the results of another measurement"):
        Entry(REGISTRY, out, replace(few, nats=1.0), few.recipe, SMALL).run([0])


def test_an_interrupted_entry_resumes(
    few: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is not done again."""
    ran, told = [], {"tokens": 1, "parameters": 1, **run(3.0, 50, 50)}

    def one(self: Entry, seed: int, folder: Path) -> dict[str, Any]:
        ran.append(seed)
        if ran == [0, 1]:
            raise TrainingInterrupted("stopped at step 7")
        return {**told, "scores": dict.fromkeys(rules.JUDGED, 50.0)}

    monkeypatch.setattr(Entry, "_run", one)
    monkeypatch.setattr(rules, "ICONS", few)
    arguments = ["speedrun", "--recipe", few.recipe, "--seeds", "0", "1", "-o"]
    arguments += [str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 130
    assert main(arguments) == 0
    assert ran == [0, 1, 1]


def test_other_codes_are_refused(few: Track, tmp_path: Path) -> None:
    entry = Entry(REGISTRY, tmp_path / "out", replace(few, codes="0" * 16), few.recipe, SMALL)
    with pytest.raises(CM3Error) as caught:
        entry.run([0])
    assert tells(caught.value, "image_tokenizer: has the fingerprint ...")


@pytest.mark.slow
def test_an_entry_is_judged(few: Track, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Entry(REGISTRY, out, replace(few, seeds=1), few.recipe, SMALL).run([0])
    [found] = json.loads((out / "record.json").read_text())["runs"]
    assert set(found["scores"]) == set(rules.JUDGED)
    assert (out / "seed-0" / "judged" / "verdicts.png").stat().st_size > 0
