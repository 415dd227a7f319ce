"""Licences of documents: stated by sources, counted, stored with a run, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.document import Text
from cm3core.errors import DataError
from cm3core.images import read_png_metadata, save_png
from cm3core.interfaces.dataset import Provenance
from cm3icons.data import IconSourceConfig
from cm3icons.data.sets import EMOJI_LICENCES
from cm3kits.samples import ListSource
from cm3plugins.datasets.emoji import EmojiSourceConfig
from cm3plugins.datasets.emoji.packages import LICENCES, STYLE_PACKAGES
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from cm3run.checkpoint import export_model
from cm3run.training.data_notes import check_licences, counted, of_documents, write_provenance
from messages import tells


class Licensed(ListSource):
    def provenance(self, index: int) -> Provenance:
        return Provenance("MIT", "a", "me") if index % 2 else Provenance("CC0-1.0")


def source(num: int = 5) -> Any:
    return Licensed([(Text(str(i)),) for i in range(num)])


def test_licences_are_counted() -> None:
    assert counted(source()) == [
        {"licence": "CC0-1.0", "source": "", "attribution": "", "documents": 3},
        {"licence": "MIT", "source": "a", "attribution": "me", "documents": 2},
    ]
    assert counted(ListSource([(Text("a"),)]))[0]["licence"] == "unknown"


def test_other_licences_are_refused() -> None:
    check_licences(source(), [])
    check_licences(source(), ["MIT", "CC0-1.0"])
    with pytest.raises(DataError) as caught:
        check_licences(source(), ["CC0-1.0"])
    assert tells(
        caught.value, f"document {source().id(1)!r}: has the licence 'MIT' ... train.licences"
    )


def test_a_run_keeps_them(tmp_path: Path) -> None:
    write_provenance(tmp_path, source(), None)
    values = json.loads((tmp_path / "provenance.json").read_text())
    assert (values["format"], values["memory"]) == ("cm3 provenance 1", None)
    assert values["trained_on"] == counted(source())
    own = source()
    assert of_documents(own, [own.id(1), "none"]) == {own.id(1): Provenance("MIT", "a", "me")}


def test_bundled_corpora_state_theirs() -> None:
    emoji = EmojiSourceConfig(concepts="starter", styles=["noto", "twemoji"]).build()
    found = {one["licence"] for one in counted(emoji)}
    assert found == {"Apache-2.0", "CC-BY-4.0"}
    assert all(
        one["source"].startswith("npm @iconify-json/") and one["attribution"]
        for one in counted(emoji)
    )
    assert {style: licence for style, (licence, _) in LICENCES.items()} == EMOJI_LICENCES
    assert set(LICENCES) == set(STYLE_PACKAGES)
    icons = IconSourceConfig(sets=["lucide"]).build()
    [one] = counted(icons)
    assert (one["licence"], one["documents"]) == ("ISC", len(icons))
    assert one["source"].startswith("npm @iconify-json/lucide ")


def test_lines_state_theirs(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    rows: list[dict[str, Any]] = [
        {
            "text": "a",
            "image": "a.png",
            "id": "0",
            "licence": "MIT",
            "source": "s",
            "attribution": "me",
        },
        {"text": "b", "image": "a.png", "id": "1"},
        {"text": "c", "image": "a.png", "id": "2", "licence": 3},
        {"text": "d", "image": "a.png", "id": "3", "source": " "},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = JSONLSourceConfig(path=str(tmp_path / "data.jsonl"), split="all").build()
    assert [found.provenance(i) for i in range(len(found))] == [
        Provenance("MIT", "s", "me"),
        Provenance(),
    ]
    assert [one.cause for one in found.skipped] == [
        "'licence' is a number, not a non-empty text",
        "'source' is a text, not a non-empty text",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provenance", "bundled:emoji64", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["data set"] == "emoji"
    assert {one["licence"] for one in values["trained on"]} == {"Apache-2.0", "MIT", "CC-BY-4.0"}
    command = [
        "generate",
        "red apple",
        "--model",
        "bundled:emoji64",
        "--n",
        "1",
        "-o",
        str(tmp_path),
    ]
    assert main(command) == 0
    picture = tmp_path / "000.png"
    metadata = read_png_metadata(picture)
    assert "trainedAlgorithmicMedia" in metadata["XML:com.adobe.xmp"]
    [document] = json.loads(metadata["retrieved"])
    capsys.readouterr()
    assert main(["provenance", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "prompt: red apple\nseed: 0\nmodel: bundled:emoji64\n" in shown
    assert f"documents:\n  {document}, " in shown
    save_png(tmp_path / "other.png", np.zeros((4, 4, 3), np.uint8))
    save_png(
        tmp_path / "bad.png", np.zeros((4, 4, 3), np.uint8), {"recipe_hash": "x", "retrieved": "{"}
    )
    for arguments, message in (
        ([str(tmp_path / "other.png")], "has no generation metadata"),
        ([str(tmp_path / "bad.png")], "its metadata are damaged"),
        (["bundled:emoji64", "--model", "x"], "--model: needs a picture"),
    ):
        assert main(["provenance", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_without_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported, and used where the path of its recipe leads nowhere: what the run noted came along, and what
    needs the data says how to do without."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    save_png(tmp_path / "data" / "a.png", np.zeros((16, 16, 3), np.uint8))
    rows = [{"text": f"a {n}", "image": "a.png", "id": str(n), "licence": "MIT"} for n in range(9)]
    (tmp_path / "data" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["dataset=jsonl", "dataset.path=data/all.jsonl", "dataset.valid=0", "train.steps=1"]
    # two documents and the one that is drawn, of 259 tokens each without text
    memory = ["retriever=bm25", "decoder.context_length=900"]
    assert main(["train", "tiny", "-o", "run", *data, *memory, "--quiet"]) == 0
    export_model("run", "model")
    shutil.move("model", tmp_path / "elsewhere")
    shutil.rmtree("data")
    capsys.readouterr()
    assert main(["provenance", "elsewhere"]) == 0
    out, told = capsys.readouterr()
    assert (
        "trained on:\n  9 documents, MIT\nretrieved from in training:\n  9 documents, MIT\noutside:\n"
        f"  dataset.path reads {tmp_path}/data/all.jsonl (its pictures and captions): "
        "only with --trust-endpoints\n" in out
    )
    assert told == ""
    draw = ["generate", "a 1", "--model", "elsewhere", "--n", "1", "-o", "out"]
    assert main(draw) == 2
    assert tells(
        capsys.readouterr().err,
        "... error: elsewhere/recipe.yaml: was not made by you ... dataset.path",
    )
    assert main([*draw, "--trust-endpoints", "./data"]) == 2
    assert tells(
        capsys.readouterr().err, "... error: dataset.path data/all.jsonl: there is no such file"
    )
    assert main([*draw, "--num-retrieved", "0"]) == 0
