"""`cm3 complete`: a set of own icons by an untrained model, what is found, kept and replaced, and wrong input."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3apps.cli.provenance import told_of
from cm3icons.complete.drawing import Completer
from cm3icons.complete.folder import Results
from cm3icons.complete.sets import open_set
from cm3icons.data import IconSourceConfig
from cm3icons.evaluation import usable
from cm3icons.evaluation.usable import Verdict
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run.attribution import facts_of_file
from cm3run.model.model import load
from drawing_models import OWN_ICONS, train_small
from messages import tells


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with some forty things of two sets as its memory."""
    folder = tmp_path_factory.mktemp("runs")
    return train_small(folder / "svg", folder / "cache")


@pytest.fixture
def things(run: Path) -> list[str]:
    """Names that the memory has in some hand, and the own icons lack."""
    model = load(run)
    source = model.components.source
    return sorted({source.group(index) for index in range(len(source))})


def complete(run: Path, *arguments: str) -> int:
    return main(["complete", *arguments, "--model", str(run), "--threads", "1"])


def report(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return read


def test_an_own_set_is_completed(
    run: Path, things: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All candidates are files of the set, of the documents that the report names; what the set has is found."""
    thing, out = things[0], tmp_path / "out"
    names = [thing, "zzyzx bell", "Bell", "bar-chart"]
    assert complete(run, str(OWN_ICONS), *names, "-o", str(out), "-n", "3") == 0
    told = capsys.readouterr()
    assert "own icons: " not in told.out
    assert tells(told.out, "... 12 drawings, outline, canvas 0 0 20 20, grid 0.5, lines 1.5")
    assert tells(
        told.err,
        "... note: 'zzyzx bell' in the index: it has nothing like 'zzyzx bell' ... what is drawn is a guess",
    )
    entries = {one["name"]: one for one in report(out)["things"]}
    assert {name: one["kind"] for name, one in entries.items()} == {
        thing: "restyled",
        "zzyzx bell": "composed",
        "bell": "found",
        "bar chart": "found",
    }
    stem = entries[thing]["file"]
    for one in entries[thing]["candidates"]:
        content = (out / one["file"]).read_bytes()
        file = parsed(content)  # one paint in one canvas
        assert (file.box, file.paint) == ((0, 0, 20, 20), "#2b5d9c")
        render_svg(file.svg, 32)
        assert one["paint"] == 1  # the rules allow no other
        of_memory, of_set = one["documents"]
        assert of_memory["id"].startswith(("lucide/", "tabler/"))
        assert of_set["id"].startswith("ico_")
        facts = facts_of_file(out / one["file"])
        assert facts is not None
        assert [credit.id for credit in facts.credits] == [of_memory["id"]]
    assert len({one["documents"][1]["id"] for one in entries[thing]["candidates"]}) == 3
    best = entries[thing]["candidates"][0]["file"]
    assert (out / stem).read_bytes() == (out / best).read_bytes()
    adapted = entries[thing]["adapted"]
    file = parsed((out / adapted["file"]).read_bytes())
    assert (file.box, file.paint) == ((0, 0, 20, 20), "#2b5d9c")
    facts = facts_of_file(out / adapted["file"])
    assert facts is not None
    assert told_of(facts)["adapted"] == adapted["document"]
    assert [credit.id for credit in facts.credits] == [adapted["document"]]
    assert "algorithmicallyEnhanced" in (out / adapted["file"]).read_text()
    assert "trainedAlgorithmicMedia" in (out / stem).read_text()
    assert entries["zzyzx bell"]["adapted"] is None
    licences = (out / "LICENSES").read_text()
    assert stem in licences
    assert adapted["file"] in licences
    assert (out / "sheet.png").stat().st_size > 0
    assert not list(out.glob("bell*"))


def test_the_same_command_keeps_and_another_replaces(
    run: Path, things: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first, second = things[:2]
    command = (str(OWN_ICONS), "-o", str(out), "-n", "1")
    assert complete(run, *command[:1], first, *command[1:]) == 0
    [before] = report(out)["things"]
    changed = (out / before["file"]).stat().st_mtime_ns
    assert complete(run, *command[:1], second, first, *command[1:]) == 0
    assert [one["name"] for one in report(out)["things"]] == [first, second]
    assert (out / before["file"]).stat().st_mtime_ns == changed
    capsys.readouterr()
    assert complete(run, *command[:1], second, *command[1:], "--seed", "3", "--clean") == 0
    assert tells(capsys.readouterr().err, "note: ... 2 things of an earlier call ... are replaced")
    [entry] = report(out)["things"]
    assert entry["name"] == second
    assert not (out / before["file"]).exists()
    assert "<metadata>" not in (out / entry["file"]).read_text()
    assert "<metadata>" not in (out / entry["adapted"]["file"]).read_text()
    assert sorted(path.name for path in (out / "candidates").iterdir()) == [
        Path(entry["candidates"][0]["file"]).name
    ]
    assert [path.name for path in (out / "adapted").iterdir()] == [entry["file"]]


def test_an_interrupted_call_goes_on(
    run: Path,
    things: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the files of the second thing and the report: the first is kept, the second drawn again, as without the
    interruption."""
    names, whole, out = things[:2], tmp_path / "whole", tmp_path / "out"
    assert complete(run, str(OWN_ICONS), *names, "-o", str(whole), "-n", "1") == 0
    with monkeypatch.context() as patch:
        write = Results.write

        def interrupted(self: Results) -> None:
            if len(self.entries) == 2:
                raise KeyboardInterrupt
            write(self)

        patch.setattr(Results, "write", interrupted)
        assert complete(run, str(OWN_ICONS), *names, "-o", str(out), "-n", "1") == 130
    assert tells(capsys.readouterr().err, "... interrupted: 1 of 2 things are done")
    [first] = report(out)["things"]
    kept = (out / first["file"]).stat().st_mtime_ns
    (out / "notes.txt").write_text("mine")
    assert complete(run, str(OWN_ICONS), *names, "-o", str(out), "-n", "1") == 0
    assert (out / first["file"]).stat().st_mtime_ns == kept
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    files = {
        path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()
    }
    assert files == {
        path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_what_the_set_has_is_drawn_on_request_without_its_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("bell", "-o", str(out), "-n", "2")
    assert complete(run, str(OWN_ICONS), *command) == 0
    assert complete(run, str(OWN_ICONS), *command, "--draw") == 0
    [entry] = report(out)["things"]
    documents = {one["id"] for each in entry["candidates"] for one in each["documents"]}
    assert documents
    assert "ico_bell_20" not in documents


def test_a_set_of_the_memory(run: Path, things: list[str], tmp_path: Path) -> None:
    """Its originals are found with their licence, also those that are held out; what it lacks gets documents of the
    other set and of its own."""
    model = load(run)
    assert model.recipe.dataset is not None
    own = open_set("lucide", model.recipe.dataset.memory_config(), None, None)
    lacking = next(one for one in things if not own.has(one))
    out = tmp_path / "out"
    has = next(own.source.group(index) for index in range(len(own.source)))
    assert complete(run, "lucide", has, lacking, "-o", str(out), "-n", "1") == 0
    entries = {one["name"]: one for one in report(out)["things"]}
    assert entries[has]["kind"] == "found"
    facts = facts_of_file(out / entries[has]["file"])
    assert facts is not None
    assert [one.provenance.licence for one in facts.credits] == ["ISC"]
    [candidate] = entries[lacking]["candidates"]
    assert [one["id"].split("/")[0] for one in candidate["documents"]] == ["tabler", "lucide"]
    assert own.hand.ends == (("round", "round"),)


def test_a_set_whose_own_drawing_is_more_than_plain_shapes_gets_its_sheet(
    run: Path, tmp_path: Path
) -> None:
    """One of `<use>`, which files of a user may not have."""
    out = tmp_path / "out"
    assert complete(run, "bi", "cc square", "--draw", "-o", str(out), "-n", "1") == 0
    assert (out / "sheet.png").stat().st_size > 0


def test_results_in_a_folder_with_the_sets_name(
    run: Path, things: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = open_set("lucide", IconSourceConfig(), None, None)
    monkeypatch.chdir(tmp_path)
    lacking = next(one for one in things if not own.has(one))
    assert complete(run, "lucide", lacking, "-o", "lucide", "-n", "1") == 0
    assert report(tmp_path / "lucide")["settings"]["set"] == "lucide"


def test_a_model_is_tuned_on_the_set_and_compared(
    run: Path, things: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The drawings that were left out decide which model draws; the next call uses the tuned one again."""
    own, out = tmp_path / "own", tmp_path / "out"
    shutil.copytree(OWN_ICONS, own)
    for number, name in enumerate(things[1:16]):
        (own / f"ico_{name}_20.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20" fill="none" stroke="#2b5d9c">'
            f'<path d="M{number + 1} 2v16"/></svg>'
        )
    command = (str(own), things[0], "-o", str(out), "-n", "1", "--tune", "0.01")
    assert complete(run, *command) == 0
    told = capsys.readouterr().out
    assert tells(told, "... tuned: ... nats a code on ... drawings that were left out, untuned: ")
    tuned = report(out)["tuned"]
    assert tuned["used"] == (tuned["after"] < tuned["before"])
    assert report(out)["settings"]["model"].startswith(str(out if tuned["used"] else run))
    [entry] = report(out)["things"]
    assert entry["candidates"][0]["documents"][0]["id"].startswith(("lucide/", "tabler/"))
    before = sorted((out / "tuned").rglob("*.safetensors"))
    assert complete(run, *command) == 0
    assert report(out)["tuned"] == tuned
    assert sorted((out / "tuned").rglob("*.safetensors")) == before


def test_pictures_of_a_model_of_pixels_are_traced(tmp_path: Path) -> None:
    """Files of the set in its lines or in areas of its paint; those most like the thing come first, copies last."""
    pytest.importorskip("vtracer", reason="pictures are traced with the extra svg")
    out = tmp_path / "out"
    command = ["complete", str(OWN_ICONS), "umbrella", "-o", str(out), "-n", "3", "--threads", "1"]
    assert main(command) == 0
    [entry] = report(out)["things"]
    assert entry["kind"] == "restyled"
    for one in entry["candidates"]:
        file = parsed((out / one["file"]).read_bytes())
        assert (file.box, file.paint) == ((0, 0, 20, 20), "#2b5d9c")
        assert "stroke-width" not in file.svg or 'stroke-width="1.5"' in file.svg
    order = [
        (one["copy"], -round(one["paint"], 1), -one["likeness"]) for one in entry["candidates"]
    ]
    assert order == sorted(order)
    assert (out / "sheet.png").stat().st_size > 0


def test_documents_differ_as_far_as_there_are_some(run: Path, things: list[str]) -> None:
    model = load(run)
    own = open_set(str(OWN_ICONS), None, None, None)
    documents = Completer(model, own, None, {}).documents(things[0], 4)
    pairs = documents.pairs(4)
    assert len({pair[-1].id for pair in pairs}) == 4
    assert len({pair[0].id for pair in pairs}) == min(4, len(documents.things))


def test_the_hand_is_shown_by_what_looks_like_the_thing(tmp_path: Path) -> None:
    """Whatever its name is; four times as many are drawn as candidates are kept."""
    own = tmp_path / "own"
    shutil.copytree(OWN_ICONS, own)
    (own / "ico_sunshade_20.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20" fill="none" stroke="#2b5d9c" stroke-width="1.5">'
        '<path d="M2 10a8 8 0 0 1 16 0zM10 2v14a2 2 0 0 0 4 0"/></svg>'
    )
    completer = Completer(
        load("bundled:icons64-hands"), open_set(str(own), None, None, None), None, {}
    )
    documents = completer.documents("umbrella", 2)
    assert [one.thing for one in documents.things] == ["umbrella"] * len(documents.things)
    assert len(documents.things) > 4
    assert documents.hands[0].id == "ico_sunshade_20"
    assert len(completer.job(documents, 2, seed=0).requests) == 8


def test_verdicts_decide_the_order(
    run: Path,
    things: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge is given the set's own drawings and names, and the documents; its usable candidate comes first."""
    asked: list[tuple[Any, Any]] = []

    class Judge:
        def judge(self, pictures: Any, own: Any, documents: Any) -> list[Verdict]:
            asked.append((own[0], documents[0]))
            last = len(pictures) - 1
            return [
                Verdict(1 if place == last else 7, "bus", True, 0.3, "ph/bus", False)
                for place in range(len(pictures))
            ]

    monkeypatch.setattr(usable, "icon_judge", Judge)
    out = tmp_path / "out"
    command = (str(OWN_ICONS), things[0], "-o", str(out), "-n", "3")
    assert complete(run, *command) == 0
    [before] = report(out)["things"]
    assert complete(run, *command, "--judge") == 0
    [entry] = report(out)["things"]
    seeds = [one["seed"] for one in before["candidates"]]
    assert [one["seed"] for one in entry["candidates"]] == [seeds[2], *seeds[:2]]
    assert [one["verdict"]["usable"] for one in entry["candidates"]] == [True, False, False]
    assert entry["adapted"]["verdict"]["read_as"] == "bus"
    [(own, documents), adapted] = asked
    assert len(adapted[1]) == len(documents)
    assert (own.thing, len(own.drawings), "bar chart" in own.names) == (things[0], 12, True)
    assert len(documents) >= 4
    assert " usable " in capsys.readouterr().out


@pytest.mark.slow
def test_things_of_the_whole_corpus(run: Path) -> None:
    """Versions of just the thing, in the set's style first, and a drawing of the set that shares a word."""
    model = load(run)
    model.components.memory = IconSourceConfig(styles=["-colour"]).build()
    own = open_set(str(OWN_ICONS), None, "outline", None)
    completer = Completer(model, own, None, {})
    for name in ("bell off", "plug", "credit card"):
        found = completer.documents(name, 3)
        assert found.kind == "restyled"
        assert {one.thing for one in found.things} == {name}
        assert all("outline" in one.text for one in found.things[:3])
    assert completer.documents("bell off", 1).hands[0].id == "ico_bell_20"
    assert completer.documents("zzyzx", 1).kind == "composed"


class TestWrongInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((str(OWN_ICONS), ",,"), "error: NAME ',,': has no words"),
            ((str(OWN_ICONS), "bell, filled"), "error: NAME 'bell, filled': has a comma"),
            ((str(OWN_ICONS), "a " * 13), "error: NAME ... has 13 words"),
            (
                (str(OWN_ICONS), "bell off", "--tune", "1"),
                "error: --tune: needs 20 drawings ... has 12",
            ),
            (("lucide", "violin", "--tune", "1"), "error: --tune: tunes on a folder's drawings"),
            (("lucid", "bell"), "error: SET lucid: is neither a folder nor a set ... 'lucide'"),
            (
                ("tabler", "bell", "--style", "blue"),
                "error: SET tabler: has no drawings in the style",
            ),
        ],
    )
    def test_names_and_sets(
        self,
        run: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        message: str,
    ) -> None:
        assert complete(run, *arguments, "-o", str(tmp_path / "out")) == 2
        assert tells(capsys.readouterr().err, message)

    def test_tracing_without_its_package(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = util.find_spec
        monkeypatch.setattr(
            util, "find_spec", lambda name, *more: None if name == "vtracer" else found(name, *more)
        )
        assert main(["complete", str(OWN_ICONS), "bell", "-o", str(tmp_path / "out")]) == 2
        assert tells(capsys.readouterr().err, "error: cm3 complete: ... vtracer ... cm3leon[svg]")

    def test_folders(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        empty, few, bad = (tmp_path / name for name in ("empty", "few", "bad"))
        for folder in (empty, few, bad):
            folder.mkdir()
        for path in sorted(OWN_ICONS.glob("*.svg"))[:3]:
            shutil.copy(path, few)
        for number in range(6):
            (bad / f"{number}.svg").write_text(
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
                '<path fill="red" d="M0 0h1z"/><path d="M0 0h1z"/></svg>'
            )
        for folder, message in (
            (empty, "error: dataset.path ... holds no SVG file"),
            (few, "error: SET ... has 3 drawings that can be used, and a hand shows in 5 or more"),
            (bad, "error: SET ... has no drawing ... 6 files were skipped ... has 2 colours"),
        ):
            assert complete(run, str(folder), "bell off", "-o", str(tmp_path / "out")) == 2
            assert tells(capsys.readouterr().err, message)

    def test_results_where_they_do_not_belong(
        self, run: Path, things: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own, out = tmp_path / "own", tmp_path / "out"
        shutil.copytree(OWN_ICONS, own)
        assert complete(run, str(own), "violin", "-o", str(own / "new")) == 2
        assert tells(capsys.readouterr().err, "error: ... is inside the set ... (-o)")
        assert not (own / "new").exists()
        out.mkdir()
        (out / "violin.svg").write_text("mine")
        assert complete(run, str(own), "violin", "-o", str(out)) == 2
        assert tells(
            capsys.readouterr().err, "error: ... is there already, and was not written by cm3leon"
        )
        assert (out / "violin.svg").read_text() == "mine"

    @pytest.mark.parametrize("name", ["LICENSES", "report.json", "sheet.png"])
    def test_other_files_of_the_user(
        self,
        name: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """In the way, though nothing would be drawn; no model is opened."""
        from cm3icons.complete import command

        monkeypatch.setattr(command, "open_model", lambda *_: pytest.fail("a model is opened"))
        (tmp_path / name).write_text("mine")
        assert complete(tmp_path, str(OWN_ICONS), "bell", "-o", str(tmp_path)) == 2
        assert name in capsys.readouterr().err
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}

    def test_a_report_of_somebody_else_names_no_files_to_delete(
        self, run: Path, tmp_path: Path
    ) -> None:
        """Neither one that the user put there, nor one that a folder of our own results was given since."""
        out = tmp_path / "out"
        out.mkdir()
        strange = {"form": 1, "settings": {}, "things": [], "writing": ["logo.svg"]}
        (out / "logo.svg").write_text("mine")
        (out / "report.json").write_text(json.dumps(strange))
        assert complete(run, str(OWN_ICONS), "bar off", "-o", str(out), "-n", "1") == 2
        (out / "report.json").unlink()
        assert complete(run, str(OWN_ICONS), "bar off", "-o", str(out), "-n", "1") == 0
        (out / "report.json").write_text(json.dumps(strange))
        assert complete(run, str(OWN_ICONS), "bar off", "-o", str(out), "-n", "2") == 2
        assert (out / "logo.svg").read_text() == "mine"

    def test_a_changed_drawing_stays(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With the same settings the call goes on; with others it would be replaced, and is refused."""
        out = tmp_path / "out"
        command = (str(OWN_ICONS), "bar off", "-o", str(out), "-n", "1")
        assert complete(run, *command) == 0
        (out / "bar-off.svg").write_text("mine")
        assert complete(run, *command) == 0
        assert complete(run, *command, "--seed", "7") == 2
        assert "bar-off.svg" in capsys.readouterr().err
        assert (out / "bar-off.svg").read_text() == "mine"
        (out / "bar-off.svg").rename(out / "kept.svg")
        assert complete(run, *command, "--seed", "7") == 0
        assert (out / "kept.svg").read_text() == "mine"
