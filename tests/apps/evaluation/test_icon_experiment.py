"""`cm3 experiment icons`, end to end with a tiny model: what it measures, samples, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cm3run.model
from cm3apps.cli.main import main
from cm3apps.evaluation.icons import experiment, style_classifier, tokenizer_figures
from cm3apps.evaluation.icons.drawing import Samples, best_version, nats_of_codes
from cm3apps.evaluation.icons.settings import CONDITIONS, IconSettings
from cm3apps.evaluation.results import ResultFolder
from cm3core.errors import CM3Error, FileError
from cm3core.interfaces.retriever import Region
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3run.build import build
from cm3run.model import Model
from cm3run.training.preparation import Preparation
from cm3run.training.sequences import MaskedSequences, RetrievedDocuments, SequenceSettings
from cm3run.training.validation import UnmaskedObjective
from messages import tells
from small_disk import leave_room, small_disk

TINY = [
    "dataset.things_share=0.005",
    "dataset.image_size=32",
    "image_tokenizer=patches",
    "text_tokenizer.vocab_size=300",
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    registry = load_registry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM3_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = compose("icons", TINY, registry=registry)
        components = build(recipe, registry, stage="train")
        components.decoder.module.eval()
        return Model(recipe, components, name="tiny", step=7)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    for module, values in (
        (style_classifier, {"NUM_TRAINED": 64, "NUM_HELD_OUT": 8, "EPOCHS": 1}),
        (tokenizer_figures, {"NUM_MEASURED": 3, "NUM_LEARNT_FROM": 200, "KMEANS_ROUNDS": 1}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(cm3run.model, "load", lambda *_, **__: model)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def _run(out: Path, *more: str) -> int:
    return main(
        ["experiment", "icons", "tiny", "--num", "2", "--judges", "pixels", *more, "-o", str(out)]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_all_stages_and_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    splits = ("--splits", "comp", "train")
    assert _run(whole, *splits) == 0
    figures = json.loads((whole / "figures.json").read_text())
    assert set(figures["splits"]) == {"comp", "train"}
    comp = figures["splits"]["comp"]
    assert set(comp["nats"]) == set(CONDITIONS)
    assert comp["pictures"]["real"]["pixels"] == {"r1": 1.0, "r5": 1.0}
    assert set(comp["pictures"]) == {
        "real",
        "reconstructed",
        "version",
        "drawn-none",
        "drawn-version",
    }
    assert comp["found"]["version"] == {"any": 1.0, "same_thing": 1.0}
    assert sum(one["num"] for one in comp["by_set"].values()) == 2
    for one in comp["by_set"].values():
        assert set(one) == {"num", "version", "drawn-version"}
    # both parts together are the whole
    for kind in ("version", "drawn-version"):
        mean = sum(one["num"] * one[kind]["pixels"]["r5"] for one in comp["by_set"].values()) / 2
        assert mean == pytest.approx(comp["pictures"][kind]["pixels"]["r5"])
    assert comp["found"]["none"]["any"] == comp["found"]["random"]["same_thing"] == 0.0
    assert set(figures["tokenizer"]) == {"tokenizer", "k-means", "png", "webp", "jpeg"}
    report = (whole / "report.md").read_text()
    for split in figures["splits"]:
        assert (whole / f"pictures-{split}.png").stat().st_size > 0
        assert f"(pictures-{split}.png)" in report
    assert "experiment icons tiny --num 2" in report
    assert "## Whose version it is" in report

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "draw", stopped)
        assert _run(resumed, *splits) == 130
    assert "resume with: cm3 experiment icons tiny" in capsys.readouterr().err
    kept = resumed / "parts" / "comp-nats.json"
    before = kept.stat().st_mtime_ns
    assert _run(resumed, *splits) == 0
    assert kept.stat().st_mtime_ns == before, "what was measured is not measured again"
    renamed = (str(resumed).encode(), str(whole).encode())
    changed = {name: text.replace(*renamed) for name, text in _files(resumed).items()}
    assert changed == _files(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_another_measurement_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ("--no-tokenizer", "--splits", "unseen", "--draw", "none")
    assert _run(out, *more) == 0
    before = _files(out)
    assert _run(out, *more, "--temperature", "0.5") == 2
    message = capsys.readouterr().err
    assert tells(
        message, "... has the results of another measurement (different: settings sampling)"
    )
    assert _files(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("my own")
    assert _run(tmp_path / "mine", *more) == 2
    assert "is not empty, but has no results of this experiment" in capsys.readouterr().err
    assert (tmp_path / "mine" / "report.md").read_text() == "my own"


def test_a_folder_whose_settings_could_not_be_written_is_begun_again(tmp_path: Path) -> None:
    """A full disk left an empty folder of parts, which was taken for something else's."""
    settings = IconSettings(2, ("comp",), (), ())
    with small_disk(tmp_path / "disk") as disk:
        filler = leave_room(disk, 0)
        with pytest.raises(FileError) as raised:
            ResultFolder(disk / "out", {}, settings)
        assert tells(raised.value, f"{disk}/out/settings.json: can't be written (No space left")
        filler.unlink()
        (disk / "out" / "parts").mkdir()  # as earlier versions left it
        ResultFolder(disk / "out", {}, settings)
        assert {path.name for path in (disk / "out").iterdir()} == {"parts", "settings.json"}
    (tmp_path / "mine" / "parts").mkdir(parents=True)
    (tmp_path / "mine" / "parts" / "a.txt").touch()
    with pytest.raises(CM3Error, match="is not empty, but has no results of this experiment"):
        ResultFolder(tmp_path / "mine", {}, settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "--num"),
        (["--splits", "test"], "invalid choice: 'test'"),
        (["--top-p", "0"], "--top-p"),
        (["--draw", "all"], "invalid choice: 'all'"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "icons", "tiny", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "icons", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_pictures(tmp_path: Path) -> None:
    registry = load_registry()
    recipe = compose("icons", ["dataset=emoji"], registry=registry)
    other: Any = type("Other", (), {"recipe": recipe, "name": "other"})()
    settings = IconSettings(2, ("comp",), ("none",), ("pixels",))
    with pytest.raises(CM3Error, match="its data set is 'emoji', and this experiment measures"):
        experiment.IconExperiment(other, tmp_path / "out", settings, "cm3")
    assert not (tmp_path / "out").exists()


def test_the_sample_is_fixed_and_nothing_is_prepended_to_itself(model: Model) -> None:
    samples = Samples(model)
    for split in ("comp", "unseen"):
        asked = samples.of(split, 4)
        assert [one.entry.id for one in asked] == [one.entry.id for one in samples.of(split, 4)]
        more = samples.of(split, 6)
        assert [one.entry.id for one in more[: len(asked)]] == [one.entry.id for one in asked]
        assert {one.entry.split for one in asked} == {split}
        assert len({one.entry.words for one in asked}) == len(asked)
        for one in more:
            assert set(one.prepended) == set(CONDITIONS)
            assert one.shown["version"] == one.entry.words != one.shown["random"]
            assert all(one.document not in front for front in one.prepended.values())


def test_a_version_of_the_same_set_is_preferred() -> None:
    def entry(name: str) -> IconEntry:
        return IconEntry(name, "bell", "outline", (), "train")

    own = entry("mdi/bell")
    others = [entry(f"{name}/bell") for name in ("ph", "lucide", "bi")]
    assert best_version(own, [own, *others, entry("mdi/bell-2")]).id == "mdi/bell-2"
    first = best_version(own, [own, *others])
    assert best_version(own, [*reversed(others), own]) == first


@pytest.mark.slow
@torch.inference_mode()
def test_nats_are_those_of_the_validation_in_training(model: Model, tmp_path: Path) -> None:
    """The same rows of tokens; only the other ids, which the engine never draws there, don't count."""
    components = model.components
    preparation = Preparation(components, progress=False)
    preparation.cache_dir = tmp_path
    source = components.split("unseen")
    asked = Samples(model).of("unseen", 3)
    data = preparation.sequences(source, UnmaskedObjective(), retrieve=False, training=False)
    indices = [next(i for i in range(len(source)) if source.id(i) == one.entry.id) for one in asked]

    class Versions:
        def __len__(self) -> int:
            return len(source)

        def neighbours(self, index: int) -> list[int]:
            return [versions[index]] if index in versions else []

        def parts(self, index: int) -> list[tuple[int, Region]]:
            return []

    everything = components.split("all")
    position = {everything.document(i): i for i in range(len(everything))}
    versions = {
        index: position[one.prepended["version"][0]]
        for index, one in zip(indices, asked, strict=True)
    }
    codes = preparation._codes(everything)
    fronted = MaskedSequences(
        source,
        components.serializer,
        UnmaskedObjective(),
        data.code_cache,
        RetrievedDocuments(Versions(), everything, codes, 1),
        SequenceSettings(
            seed=0,
            context_length=components.decoder.context_length,
            max_text_tokens=model.recipe.data.max_text_tokens,
            training=False,
        ),
    )
    image_ids = components.vocabulary.image
    for condition, sequences in (("none", data), ("version", fronted)):
        expected = []
        for sequence in sequences.fitting(indices):
            tokens = torch.from_numpy(sequence.tokens.astype(np.int64))[None]
            hidden = components.decoder.hidden_states(
                tokens[:, :-1],
                cells_BT=torch.from_numpy(sequence.cells.astype(np.int64))[None, :-1],
            )
            targets = tokens[0, 1:]
            counted = (torch.from_numpy(sequence.weights)[1:] > 0) & (
                (targets >= image_ids.start) & (targets < image_ids.stop)
            )
            logits = components.decoder.logits(hidden[0, counted], image_ids).float()
            expected.append(
                float(torch.nn.functional.cross_entropy(logits, targets[counted] - image_ids.start))
            )
            assert int(counted.sum()) == 64
        assert nats_of_codes(model, asked, condition) == pytest.approx(expected, abs=1e-4)


def test_damaged_results_are_measured_again(tmp_path: Path) -> None:
    settings = IconSettings(2, ("comp",), ("none",), ("pixels",))
    results = ResultFolder(tmp_path / "out", {"step": 1}, settings)
    assert results.figures("a", lambda: {"value": 1}) == {"value": 1}
    assert results.figures("a", lambda: {"value": 2}) == {"value": 1}
    (tmp_path / "out" / "parts" / "a.json").write_text('{"val')
    assert results.figures("a", lambda: {"value": 3}) == {"value": 3}
    with pytest.raises(CM3Error, match="different: model step"):
        ResultFolder(tmp_path / "out", {"step": 2}, settings)
