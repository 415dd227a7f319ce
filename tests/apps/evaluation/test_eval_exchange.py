"""`cm3 eval score`; layouts and files of other benchmarks."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.exchange import export
from cm3apps.evaluation.made import Made
from cm3apps.evaluation.scorers import GEDIT, _from_geneval2, import_scores
from cm3apps.evaluation.shipped import find_protocol
from cm3apps.evaluation.tasks.edits import open_edits
from cm3apps.evaluation.tasks.gedit import open_gedit
from cm3apps.evaluation.tasks.prompts import open_prompts
from cm3core.errors import CM3Error, DataError
from cm3core.images import open_image, save_png
from cm3core.plugins import load_registry
from cm3plugins.tasks.bundled import TASKS
from cm3run.checkpoint import TunedTasks
from messages import tells
from toy_model import FirstRetriever, toy_model

PROMPTS = ["a red dog", "two / cats", "a red dog"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """An evaluation's folder, of three pictures of two prompts."""
    folder, rows = tmp_path / "eval", []
    for place, prompt in enumerate(PROMPTS):
        name = f"pictures/{place:06d}.png"
        save_png(folder / name, np.full((4, 4, 3), 50 * place, np.uint8))
        rows.append(
            {"index": place, "key": f"k{place % 2}/{place}", "prompt": prompt, "picture": name}
        )
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {"name": "kid-lite1", "value": 0.5, "hash": "abc", "num": 3, "higher_is_better": False}
    scores = {"format": "cm3 scores 1", "protocol": {"name": "p"}, "model": {"name": "m"}}
    scores["scores"] = [{**score, "measurement": {"x": 1}}, {"name": "fid", "skipped": "no file"}]  # type: ignore[assignment]  # JSON
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def with_metadata(folder: Path, metadata_of: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The folder, its samples with a benchmark's metadata, made from each."""
    path = folder / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**row, "metadata": metadata_of(row)}) + "\n" for row in rows)
    )
    return folder


def imported(what: str, path: Path) -> dict[str, str]:
    """Name and value of each score, as it is printed."""
    return {one.name: f"{one.value:.6g}" for one in import_scores(what, path)}


def test_geneval_has_a_folder_a_prompt(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        export("geneval", finished, tmp_path / "none")
    tells(
        caught.value,
        f"{finished}: has no objects of GenEval for the prompt 'a red dog' ... geneval-v1",
    )
    with_metadata(finished, lambda row: {"prompt": row["prompt"], "tag": "two_object"})
    out = export("geneval", finished, tmp_path / "out")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "00000/grid.png",
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/grid.png",
        "00001/metadata.jsonl",
        "00001/samples/0000.png",
    ]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == {
        "prompt": "two / cats",
        "tag": "two_object",
    }
    assert open_image(out / "00000" / "samples" / "0001.png")[0, 0, 0] == 100


def test_other_layouts(finished: Path, tmp_path: Path) -> None:
    dpg = export("dpg", finished, tmp_path / "dpg")
    assert sorted(path.name for path in dpg.iterdir()) == ["k0.png", "k1.png"]
    grid = open_image(dpg / "k0.png")[..., 0]
    assert grid.shape == (8, 8)
    assert grid[::4, ::4].tolist() == [[0, 100], [0, 100]]
    bench = export("t2i-compbench", finished, tmp_path / "bench")
    assert sorted(path.name for path in (bench / "samples").iterdir()) == [
        "a red dog_000000.png",
        "a red dog_000002.png",
        "two   cats_000001.png",
    ]
    with np.load(export("adm-npz", finished, tmp_path / "adm.npz")) as file:
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((3, 4, 4, 3), np.uint8)
    entries = yaml.safe_load(export("hub", finished, tmp_path / "hub.yaml").read_text())
    assert entries == [
        {
            "dataset": {"id": "p", "task_id": "kid-lite1"},
            "value": 0.5,
            "notes": "cm3leon, measurement abc, n=3",
        }
    ]


def test_what_is_not_exported(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (finished / "pictures" / "000001.png").unlink()
    for what, folder, out, message in (
        ("geneval", finished, tmp_path / "there", "already exists and is not overwritten"),
        ("geneval", finished, tmp_path / "a", "has 2 pictures of 3 samples"),
        ("dpg", tmp_path, tmp_path / "a", "there is no such file"),
    ):
        with pytest.raises(CM3Error, match=message):
            export(what, folder, out)
    assert not (tmp_path / "a").exists()


FILES: list[tuple[str, str, dict[str, str]]] = [
    (
        "geneval",
        '{"tag": "colors", "correct": true}\n{"tag": "colors", "correct": false}\n{"tag": "counting", "correct": true}\n',
        {"geneval colors": "0.5", "geneval counting": "1", "geneval": "0.75"},
    ),
    (
        "t2i-compbench",
        '[{"question_id": 0, "answer": "0.25"}, {"question_id": 1, "answer": "0.75"}]',
        {"t2i-compbench": "0.5"},
    ),
    (
        "adm",
        "warming up\nInception Score: 12.5\nFID: 7.25\nsFID: 5\n",
        {"is": "12.5", "fid-adm": "7.25", "sfid-adm": "5"},
    ),
    (
        "geneval2",
        "[[1, 0], [1, 1, 1, 0]]",
        {"geneval2 tifa": "62.5"},
    ),
    (
        "imgedit",
        '{"style": 3.5, "adjust": 2}',
        {"imgedit adjust": "2", "imgedit style": "3.5"},
    ),
    (
        "dpg",
        "L2 category scores:\n\tx - y: 86.125\nImage path: out\nDPG-Bench score: 74.65\n",
        {"dpg L2 x - y": "86.125", "dpg": "74.65"},
    ),
]


@pytest.mark.parametrize(("what", "text", "found"), FILES)
def test_files_of_other_scorers(tmp_path: Path, what: str, text: str, found: Any) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    assert imported(what, path) == found
    path.write_text("nothing of the kind")
    with pytest.raises(DataError, match=r"is not a file of .*'s scorer|has no scores"):
        import_scores(what, path)


def folder_of(path: Path, num: int, seed: int, size: int = 8) -> Path:
    rng = np.random.default_rng(seed)
    for place in range(num):
        save_png(path / f"{place}.png", rng.integers(0, 256, (size, size, 3), np.uint8))
    return path


@pytest.mark.slow
def test_two_folders_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    one, other = folder_of(tmp_path / "a", 6, 0), folder_of(tmp_path / "b", 5, 1)
    command = ["eval", "score", str(one), str(other), "--extractor", "pixels"]
    assert (
        main(
            [
                *command,
                "--metric",
                "kid",
                "--set",
                "metric.subset_size=5",
                "--set",
                "extractor.side=2",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("kid-pixels2  ")
    assert "n=6, lower is better  #" in shown
    pixels, score = ["--metric", "fid", "--extractor", "pixels"], ["eval", "score"]
    assert main([*score, str(one), str(other), *pixels, "--set", "extractor.side=2"]) == 0
    shown = capsys.readouterr().out
    assert "lower is better; mostly bias: 5 pictures with 12 features; kid is unbiased  #" in shown
    mixed = folder_of(folder_of(tmp_path / "c", 3, 2), 2, 3, size=9)
    lossy = folder_of(tmp_path / "d", 3, 4)
    (lossy / "2.png").rename(lossy / "2.jpg")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for arguments, message in (
        ([*command, "--metric", "kid"], f"{one}: holds 6 pictures, the metric needs 1000 or more"),
        (
            [*command, "--metric", "bleu"],
            "metric 'bleu': needs references, texts, but folders have",
        ),
        (
            [*score, str(tmp_path / "no.jsonl"), "--metric", "bleu"],
            f"{tmp_path}/no.jsonl: does not exist",
        ),
        (
            [*score, str(empty), "--metric", "bleu"],
            f'{empty}: holds no sample ... "text" ... "..."',
        ),
        ([*command, "--metric", "fid", "--set", "x=1"], "--set x=1: is not metric.KEY=VALUE"),
        ([*score, str(one), str(other), "--metric", "fid"], "has no extractor for the pictures"),
        ([*score, str(one), *pixels], "OTHERS: is not given"),
        ([*score, str(one), str(one), *pixels], "has the same pictures as"),
        ([*score, str(mixed), str(other), *pixels], "2.png: is 8 x 8 pixels, 0.png 9 x 9"),
        (
            [*score, str(lossy), str(other), *pixels],
            "2.jpg: has lossy compression, unlike the other pictures",
        ),
        ([*score, str(one), str(tmp_path / "x"), *pixels], "is not a folder"),
    ):
        assert main(arguments) == 2
        assert tells(capsys.readouterr().err, f"... {message}")


def test_what_is_beside_generated_pictures_is_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sheets and other versions of a picture, by what is written in them; the scores are those without."""
    reference = folder_of(tmp_path / "real", 5, 1)
    plain, made = (folder_of(tmp_path / name, 3, 2) for name in ("plain", "made"))
    for folder in (plain, made):
        for number in range(3):
            (folder / f"{number}.png").rename(folder / f"{number:03d}.png")
    own, large = {"software": "cm3leon 0.1.0"}, np.zeros((16, 16, 3), np.uint8)
    for name in ("grid", "retrieved", "preview", "000-large", "001-large", "002-transparent"):
        save_png(made / f"{name}.png", large, own)

    def scored(folder: Path) -> tuple[int, str, str]:
        side = ["--metric", "fid", "--extractor", "pixels", "--set", "extractor.side=2"]
        code = main(["eval", "score", str(folder), str(reference), *side])
        return code, *capsys.readouterr()

    code, expected, told = scored(plain)
    assert (code, told) == (0, "")
    assert scored(made) == (
        0,
        expected,
        f"note: {made}: not scored, because cm3 wrote them beside the pictures: 000-large.png, 001-large.png, "
        "002-transparent.png, 3 more\n",
    )
    # somebody else's, and enlarged ones alone, are pictures like others
    save_png(plain / "grid.png", large)
    assert scored(plain)[0] == 2
    assert "grid.png: is 16 x 16 pixels" in scored(plain)[2]
    enlarged = tmp_path / "enlarged"
    for number in range(3):
        save_png(enlarged / f"{number:03d}-large.png", large + np.uint8(number), own)
    assert scored(enlarged)[::2] == (0, "")


def test_texts_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "two", "references": ["2", "2", "2", "2", "3", "3"]}\n')
    command = ["eval", "score", str(path), "--metric"]
    assert main([*command, "vqa"]) == 0
    assert capsys.readouterr().out.startswith("vqa_accuracy  100  n=1, higher is better  #")
    assert main([*command, "fid", "--extractor", "pixels"]) == 2
    assert "holds texts, the metric needs pictures" in capsys.readouterr().err
    for line in ("{", '{"text": 3, "references": []}', '{"text": "a", "references": [1]}'):
        path.write_text(f'{{"text": "a", "references": ["a", "b"]}}\n{line}\n')
        assert main([*command, "bleu"]) == 2
        assert "answers.jsonl, line 2: is no sample" in capsys.readouterr().err


def test_exports_from_the_command_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    assert main(["eval", "export", "adm-npz", str(finished), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    path = tmp_path / "results.jsonl"
    path.write_text(FILES[0][1])
    assert main(["eval", "import", "geneval", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["geneval", "0.75"]


def test_a_benchmarks_own_prompts(tmp_path: Path) -> None:
    """GenEval's lines are kept for its scorer; DPG's files and T2I-CompBench's lines are read."""
    line = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "color_val.txt").write_text("a red dog\na green cat\n\n")
    for name in ("b", "a"):
        (tmp_path / "prompts" / f"{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"a long prompt {name}\n")
    given: Any = {"size": None, "model": None, "registry": None}

    def keys(name: str) -> list[tuple[str, str]]:
        task = open_prompts({"repeat": 2}, data=tmp_path / name, **given)
        return [(one.key, one.prompt) for one in task.samples]

    assert keys("evaluation_metadata.jsonl") == [("00000/0", "two dogs"), ("00000/1", "two dogs")]
    assert keys("color_val.txt")[2:] == [("00001/0", "a green cat"), ("00001/1", "a green cat")]
    assert keys("prompts")[::2] == [("a/0", "a long prompt a"), ("b/0", "a long prompt b")]
    task = open_prompts({}, data=tmp_path / "evaluation_metadata.jsonl", **given)
    (tmp_path / "out").mkdir()
    made = Made(tmp_path / "out", task)
    for index, sample in enumerate(task.samples):
        save_png(made.picture_path(index), np.full((4, 4, 3), index, np.uint8))
        made.add(index, {"picture": f"pictures/{made.picture_path(index).name}"})
        assert sample.target["metadata"] == line
    (tmp_path / "out" / "samples.jsonl").write_text((tmp_path / "out" / "made.jsonl").read_text())
    out = export("geneval", tmp_path / "out", tmp_path / "geneval")
    assert json.loads((out / "00000" / "metadata.jsonl").read_text()) == line
    assert len(list((out / "00000" / "samples").iterdir())) == 4
    (tmp_path / "evaluation_metadata.jsonl").write_text("{}\n")
    for name, message in (
        ("evaluation_metadata.jsonl", "line 1: is not a prompt"),
        ("none.txt", "there is no such file"),
        ("out/pictures", "holds no prompts"),
    ):
        with pytest.raises(DataError, match=message):
            keys(name)
    with pytest.raises(DataError, match="needs the benchmark's prompts"):
        open_prompts({}, data=None, **given)


def wise_lists(folder: Path) -> Path:
    """Two of WISE's files, and the second of them in other words."""
    folder.mkdir()
    science = [
        {
            "prompt_id": 801,
            "Prompt": "ice in hot tea ",
            "Subcategory": "state",
            "Explanation": "it melts",
        }
    ]
    culture = [{"prompt_id": 2, "Prompt": "a mooncake"}, {"prompt_id": 1, "Prompt": "a lantern"}]
    for name, rows in {
        "natural_science": science,
        "cultural": culture,
        "cultural_rewrite": culture,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_wise_prompts_by_their_ids(tmp_path: Path) -> None:
    folder = wise_lists(tmp_path / "data")
    keys = {"repeat": 1}
    task = open_prompts(keys, size=None, data=folder, model=None, registry=None)
    assert [(one.key, one.prompt) for one in task.samples] == [
        ("1/0", "a lantern"),
        ("2/0", "a mooncake"),
        ("801/0", "ice in hot tea"),
    ]
    # WISE_Verified's merge.json repeats the other files' prompts
    repeated = [{"Prompt": "a lantern", "prompt_id": 1}]
    (folder / "merge.json").write_text(json.dumps(repeated))
    again = open_prompts(keys, size=None, data=folder, model=None, registry=None)
    assert [one.key for one in again.samples] == [one.key for one in task.samples]
    alone = open_prompts(
        keys, size=None, data=folder / "natural_science.json", model=None, registry=None
    )
    assert alone.samples[0].target["metadata"]["Explanation"] == "it melts"
    for text, message in (
        ('{"a": 1}', "is not a list of prompts ... next: write"),
        ('[{"prompt_id": "1", "Prompt": "x"}]', "is not a list of prompts"),
        ('[{"prompt_id": 3}]', "is not a list of prompts"),
        ('[{"prompt_id": 1, "Prompt": "again"}]', "has another prompt 1 than a file before it"),
    ):
        (folder / "natural_science.json").write_text(text)
        with pytest.raises(DataError) as caught:
            open_prompts(keys, size=None, data=folder, model=None, registry=None)
        tells(caught.value, f"{folder / 'natural_science.json'}: {message}")


def test_wise_pictures_are_named_by_ids(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        export("wise", finished, tmp_path / "none")
    tells(
        caught.value,
        f"{finished}: has no id of WISE for the prompt 'a red dog' ... wise-verified-v1",
    )
    with_metadata(finished, lambda row: {"prompt_id": (401, 7, 401)[row["index"]]})
    out = export("wise", finished, tmp_path / "wise")
    assert sorted(one.name for one in out.iterdir()) == ["401.png", "7.png"]
    assert open_image(out / "401.png")[0, 0, 0] == 0, "the first picture of a prompt"


def judged(number: int, *scores: float) -> str:
    names = ("consistency", "realism", "aesthetic_quality")
    return json.dumps({"prompt_id": number, **dict(zip(names, scores, strict=True))})


def test_wise_scores_by_hand(tmp_path: Path) -> None:
    """(0.7 c + 0.2 r + 0.1 a) / 2, the mean of a category, and the weighted sum of all six, once no prompt is missing."""
    file = tmp_path / "cultural_scores_results.jsonl"
    file.write_text(judged(1, 2, 2, 2) + "\n" + judged(400, 1, 0, 0) + "\n")
    assert imported("wise", file) == {"wise cultural": "0.675"}
    others = [judged(number, 2, 0, 0) for number in range(401, 1001)]
    (tmp_path / "others.jsonl").write_text("\n".join(others))
    found = imported("wise", tmp_path)
    assert found["wise time"] == found["wise chemistry"] == "0.7"
    assert "wise" not in found, "398 prompts are missing"
    rest = [judged(number, 1, 1, 1) for number in range(2, 400)]
    (tmp_path / "rest.jsonl").write_text("\n".join(rest))
    cultural = (1 + 0.35 + 398 * 0.5) / 400
    assert imported("wise", tmp_path)["wise"] == f"{0.4 * cultural + 0.6 * 0.7:.6g}"
    for line, message in (
        (judged(3, 999, 999, 999), "prompt 3 has the scores ... if the judge did not answer"),
        (judged(1, 1, 1, 1), "prompt 1 is scored twice"),
        (judged(1001, 1, 1, 1), "there is no prompt 1001 in wise, which has 1 to 1000"),
        (judged(5, 3, 1, 1), "prompt 5 has the scores"),
    ):
        (tmp_path / "rest.jsonl").write_text(line)
        with pytest.raises(DataError) as caught:
            import_scores("wise", tmp_path)
        tells(caught.value, f"{tmp_path}: is not a file of wise's scorer (ValueError: {message}")


def test_prompts_without_pictures_are_drawn_by_a_model_that_retrieves(tmp_path: Path) -> None:
    """Its memory can have none of the references, as there are none."""
    protocol = find_protocol("wise-v1")
    data = wise_lists(tmp_path / "data")
    task = open_prompts(
        {"repeat": 1}, size=protocol.size, data=data, model=None, registry=load_registry()
    )
    model = toy_model(max_text_tokens=60)
    vars(model.components)["memory"] = FirstRetriever.memory
    scores = Evaluation(protocol, task, load_registry(), tmp_path / "eval", model=model).run()
    assert scores["leakage"] == {
        "retrieves": True,
        "documents": 3,
        "compared_by_appearance": False,
        "leaks": [],
    }
    assert sorted(
        one.name for one in export("wise", tmp_path / "eval", tmp_path / "out").iterdir()
    ) == [
        "1.png",
        "2.png",
        "801.png",
    ]


def edits(folder: Path) -> Path:
    """Two of ImgEdit's edits, of one picture."""
    save_png(folder / "animal" / "a.png", np.full((8, 8, 3), 90, np.uint8))
    rows = {
        "1082": {"id": "animal/a.png", "prompt": "make it red", "edit_type": "adjust"},
        "673": {"id": "animal/a.png", "prompt": "as a woodcut", "edit_type": "style"},
    }
    (folder / "basic_edit.json").write_text(json.dumps(rows))
    return folder


def test_edits_of_a_benchmark_are_made_and_named_by_their_keys(tmp_path: Path) -> None:
    """Those of the Python API, with the seeds of the protocol."""
    protocol, model = find_protocol("imgedit-v1"), toy_model(max_text_tokens=60)
    keys = {key: value for key, value in protocol.task.items() if key != "name"}
    task = open_edits(keys, size=None, data=edits(tmp_path / "data"), model=None, registry=None)
    assert task.measurement["judge"] == "gpt-4o", "another judge has another hash"
    evaluation = Evaluation(protocol, task, load_registry(), tmp_path / "eval", model=model)
    with pytest.raises(DataError) as caught:
        evaluation.run()
    tells(caught.value, "the model: was not tuned for edits ... next: tune it")
    model.tasks = TunedTasks({"edit": TASKS["edit"]()})
    scores = evaluation.run()
    assert (scores["model"]["num_retrieved"], scores["model"]["num_candidates"]) == (0, 1)
    out = export("imgedit", tmp_path / "eval", tmp_path / "out")
    assert sorted(one.name for one in out.iterdir()) == ["1082.png", "673.png"]
    source = np.full((8, 8, 3), 90, np.uint8)
    [second] = model.edit(source, "as a woodcut", 1, seed=protocol.seed + 1)
    assert (open_image(out / "673.png") == second.pixels).all()


def test_files_of_edits_that_are_refused(finished: Path, tmp_path: Path) -> None:
    data = edits(tmp_path / "data")
    given: dict[str, Any] = {"size": None, "model": None, "registry": None}
    path = data / "basic_edit.json"
    for text, message in (
        ("[]", "is not a file of edits ... next: write"),
        ('{"a": {"id": "../a.png", "prompt": "x"}}', "is not a file of edits"),
        ('{"a": {"id": "/etc/a.png", "prompt": "x"}}', "is not a file of edits"),
        ('{"../a": {"id": "animal/a.png", "prompt": "x"}}', "is not a file of edits"),
        ('{"a": {"id": "animal/a.png", "prompt": " "}}', "is not a file of edits"),
        ("{}", "has no edits"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            open_edits({}, data=data, **given)
        tells(caught.value, f"{path}: {message}")
    path.write_text('{"a": {"id": "animal/b.png", "prompt": "x"}}')
    with pytest.raises(DataError) as caught:
        open_edits({}, data=data, **given)
    tells(caught.value, f"{path}, edit a: names ... which is not there")
    path.unlink()
    with pytest.raises(DataError) as caught:
        open_edits({}, data=data, **given)
    tells(caught.value, f"{path}: can't be read")
    with pytest.raises(DataError) as caught:
        open_edits({}, data=None, **given)
    tells(caught.value, "this protocol: needs the benchmark's folder")
    with pytest.raises(DataError) as caught:
        export("imgedit", finished, tmp_path / "none")
    tells(caught.value, f"{finished}: has no edit of ImgEdit in its sample ... imgedit-v1")


ATOMS = {"vqa_list": [["How many dogs are in the image?", "two"]], "skills": ["count"]}


def test_geneval_2_reads_a_path_for_each_prompt(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        export("geneval2", finished, tmp_path / "none")
    tells(caught.value, f"{finished}: has no questions of GenEval 2 ... geneval2-v1")
    with_metadata(finished, lambda row: {"prompt": row["prompt"], **ATOMS})
    out = export("geneval2", finished, tmp_path / "out")
    paths = json.loads((out / "image_paths.json").read_text())
    assert paths == {"a red dog": str(out / "000000.png"), "two / cats": str(out / "000001.png")}
    shades = {prompt: int(open_image(Path(one))[0, 0, 0]) for prompt, one in paths.items()}
    assert shades == {"a red dog": 0, "two / cats": 50}, "the first picture of a prompt"


def test_geneval_2s_prompts_and_judge(tmp_path: Path) -> None:
    """Its lines are kept; another judge has another hash, and GenEval's own hash is as before there was the key."""
    (tmp_path / "geneval2_data.jsonl").write_text(
        json.dumps({"prompt": "two dogs", **ATOMS}) + "\n"
    )
    given: dict[str, Any] = {"size": None, "model": None, "registry": None}
    keys = {k: v for k, v in find_protocol("geneval2-v1").task.items() if k != "name"}
    task = open_prompts(keys, data=tmp_path / "geneval2_data.jsonl", **given)
    assert [one.prompt for one in task.samples] == ["two dogs"]
    assert task.samples[0].target["metadata"]["skills"] == ["count"]
    assert task.measurement["judge"] == "Qwen/Qwen3-VL-8B-Instruct"
    plain = open_prompts({"repeat": 1}, data=tmp_path / "geneval2_data.jsonl", **given)
    assert "judge" not in plain.measurement


def test_soft_tifa_by_hand(tmp_path: Path) -> None:
    """Arithmetic means 0.5 and 0.5, geometric means sqrt(0.25 * 0.75) and 0."""
    path = tmp_path / "score_lists.json"
    path.write_text("[[0.25, 0.75], [0, 1, 0.5]]")
    assert imported("geneval2", path) == {
        "geneval2 soft-tifa am": "50",
        "geneval2 soft-tifa gm": f"{100 * math.sqrt(0.25 * 0.75) / 2:.6g}",
    }
    path.write_text("[[0.25], [0.75]]")
    assert imported("geneval2", path) == {"geneval2 vqascore": "50"}
    for text in ("[[0.5, 1.5]]", "[[]]", "[0.5]", "[[NaN, 0.5]]", '[["a"]]'):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            import_scores("geneval2", path)
        assert "is not a file of geneval2's scorer" in str(caught.value)


@given(
    st.lists(st.lists(st.floats(0.001, 1), min_size=2, max_size=9), min_size=1, max_size=5).filter(
        lambda lists: any(value != 1 for one in lists for value in one)
    )
)
def test_soft_tifa_is_scipys(lists: list[list[float]]) -> None:
    from scipy.stats import gmean

    found = {one.name: one.value for one in _from_geneval2([json.dumps(lists)])}
    assert found["geneval2 soft-tifa gm"] == pytest.approx(100 * np.mean([gmean(x) for x in lists]))
    assert found["geneval2 soft-tifa gm"] <= found["geneval2 soft-tifa am"] + 1e-9


def gedit_rows() -> list[dict[str, Any]]:
    """Three edits of one picture, whose scaled copy is for the judge."""

    def cell(side: int, shade: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            save_png(Path(folder) / "a.png", np.full((side, side, 3), shade, np.uint8))
            return {"bytes": (Path(folder) / "a.png").read_bytes(), "path": None}

    return [
        {
            "task_type": kind,
            "key": key,
            "instruction": text,
            "instruction_language": language,
            "input_image": cell(6, 40),
            "input_image_raw": cell(8, 90),
            "Intersection_exist": True,
        }
        for kind, key, text, language in (
            ("style_change", "b1", "as a woodcut", "en"),
            ("color_alter", "a1", "make it red", "en"),
            ("color_alter", "a1c", "变成红色", "cn"),
        )
    ]


def gedit_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as Hugging Face's `datasets` writes them; return the folder."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is missing")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as w,
        ):
            w.write_table(table)
    return path.parent


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "train-00000-of-00001.parquet"])
def test_gedit_in_the_folders_of_its_scorer(tmp_path: Path, name: str) -> None:
    """The raw picture is edited by the protocol's seeds; beside it is the one that the judge compares."""
    protocol, model = find_protocol("gedit-en-v1"), toy_model(max_text_tokens=60)
    keys = {key: value for key, value in protocol.task.items() if key != "name"}
    data = gedit_file(tmp_path / "data" / name, gedit_rows())
    given: dict[str, Any] = {"size": None, "model": None, "registry": None}
    task = open_gedit(keys, data=data, **given)
    assert [(one.key, one.prompt) for one in task.samples] == [
        ("color_alter/a1", "make it red"),
        ("style_change/b1", "as a woodcut"),
    ]
    assert (task.measurement["judge"], task.measurement["language"]) == ("gpt-4.1", "en")
    [chinese] = open_gedit({"language": "cn"}, data=data, **given).samples
    assert (chinese.key, chinese.prompt) == ("color_alter/a1c", "变成红色")
    model.tasks = TunedTasks({"edit": TASKS["edit"]()})
    Evaluation(protocol, task, load_registry(), tmp_path / "eval", model=model).run()
    out = export("gedit", tmp_path / "eval", tmp_path / "out", data)
    names = sorted(str(one.relative_to(out)) for one in out.rglob("*.png"))
    assert names == [
        "fullset/color_alter/en/a1.png",
        "fullset/color_alter/en/a1_SRCIMG.png",
        "fullset/style_change/en/b1.png",
        "fullset/style_change/en/b1_SRCIMG.png",
    ]
    told = ["eval", "export", "gedit", str(tmp_path / "eval"), "-o", str(tmp_path / "again")]
    assert main([*told, "--data", str(data)]) == 0
    assert len(list((tmp_path / "again").rglob("*.png"))) == len(names)
    judged = open_image(out / "fullset/color_alter/en/a1_SRCIMG.png")
    assert (judged.shape, int(judged[0, 0, 0])) == ((6, 6, 3), 40)
    source = np.full((8, 8, 3), 90, np.uint8)
    [second] = model.edit(source, "as a woodcut", 1, seed=protocol.seed + 1)
    assert (open_image(out / "fullset/style_change/en/b1.png") == second.pixels).all()


def test_files_of_gedit_that_are_refused(finished: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"size": None, "model": None, "registry": None}

    def refused(
        message: str, values: dict[str, Any] | None = None, data: Path | None = None
    ) -> None:
        with pytest.raises(DataError) as caught:
            open_gedit(values or {}, data=data, **given)
        tells(caught.value, message)

    refused("this protocol: needs the files of GEdit-Bench ... next: download them")
    refused(f"{tmp_path / 'no'}: needs the files of GEdit-Bench", data=tmp_path / "no")
    refused("protocol: task.language: is 'fr' ... next: use en or cn", {"language": "fr"})
    rows = gedit_rows()
    for name, number, message, changed in (
        ("twice", 3, "has the edit color_alter/en/a1 again", [*rows, rows[1]]),
        ("key", 0, "is not an edit", [{**rows[0], "key": "../a"}]),
        ("dots", 0, "is not an edit", [{**rows[0], "task_type": ".."}]),
        ("empty", 0, "is not an edit", [{**rows[0], "instruction": " "}]),
    ):
        path = tmp_path / name / "a.arrow"
        refused(f"{path}, row {number}: {message}", data=gedit_file(path, changed))
    path = tmp_path / "column" / "a.arrow"
    less = [{key: value for key, value in rows[0].items() if key != "key"}]
    refused(f"{path}: has no column 'key'", data=gedit_file(path, less))
    path.write_bytes(b"nothing of the kind")
    path.rename(broken := tmp_path / "column" / "b.arrow")
    refused(f"{broken}: can't be read (", data=tmp_path / "column")
    own = gedit_file(tmp_path / "own" / "a.arrow", rows[:1])
    refused(f"{own}: has no instructions in the language 'cn'", {"language": "cn"}, own)
    holes = [{**rows[0], "input_image_raw": {"bytes": None, "path": "x.png"}}, rows[1]]
    task = open_gedit({}, data=gedit_file(tmp_path / "hole" / "a.arrow", holes), **given)
    load = next(one.picture for one in task.samples if one.key == "style_change/b1")
    assert load is not None
    with pytest.raises(DataError) as caught:
        load()
    tells(
        caught.value, f"{tmp_path}/hole/a.arrow, row 0, column 'input_image_raw': holds no picture"
    )
    with pytest.raises(DataError) as caught:
        export("gedit", finished, tmp_path / "none", own)
    tells(
        caught.value, f"{finished}: has the sample 'k0/0', which is not an edit in {own} ... next:"
    )
    assert not (tmp_path / "none").exists()


def gedit_scores(language: str, kind: str, *rows: tuple[str, float, float, bool]) -> str:
    """Lines of a CSV file of test_gedit_score.py."""
    return "".join(
        f'"r/fullset/{kind}/{language}/{key}_SRCIMG.png","r/fullset/{kind}/{language}/{key}.png",'
        f'"make it ""red"",\nplease",{semantics},{quality},{both},{language}\n'
        for key, semantics, quality, both in rows
    )


def test_gedit_scores_by_hand(tmp_path: Path) -> None:
    """sqrt(semantics * quality), its mean over a kind, and the mean of the kinds; not a mean over all edits."""
    head = (
        "source_image,edited_image,instruction,sementics_score,quality_score,"
        "intersection_exist,instruction_language\n"
    )
    first = gedit_scores("en", GEDIT[0], ("a", 4, 9, True), ("b", 1, 1, False), ("c", 0, 5, True))
    path = tmp_path / f"mine_{GEDIT[0]}_gpt_score.csv"
    path.write_text(head + first)
    assert imported("gedit", path) == {
        f"gedit en {GEDIT[0]}": f"{7 / 3:.6g}",
        f"gedit en intersection {GEDIT[0]}": "3",
    }
    others = [gedit_scores("en", kind, ("a", 9, 4, False)) for kind in GEDIT[1:]]
    for kind, text in zip(GEDIT[1:], others, strict=True):
        (tmp_path / f"mine_{kind}_gpt_score.csv").write_text(head + text)
    # the file of all repeats them, and each is counted once
    (tmp_path / "mine_combined_gpt_score.csv").write_text(head + first + "".join(others))
    found = imported("gedit", tmp_path)
    assert found["gedit en overall"] == f"{(7 / 3 + 10 * 6) / 11:.6g}"
    assert found["gedit en semantics"] == f"{(5 / 3 + 10 * 9) / 11:.6g}"
    assert found["gedit en quality"] == f"{(5 + 10 * 4) / 11:.6g}"
    assert "gedit en intersection overall" not in found, "ten kinds have none in both languages"
    for text in (
        gedit_scores("en", "no_kind", ("a", 1, 1, True)),
        gedit_scores("en", GEDIT[0], ("a", 11, 1, True)),
    ):
        path.write_text(head + text)
        with pytest.raises(DataError) as caught:
            import_scores("gedit", path)
        assert "is not an edit with scores of 0 to 10" in str(caught.value)
