"""`cm3 export --push`: what a repository of the Hub gets, from the Hub's own client and with a Hub on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from cm3apps.cli.main import main
from cm3core.images import open_image
from fake_hub import READER, WRITER, FakeHub, fake_hub, files_of
from messages import tells
from squares import PARTS

PLUGIN = PARTS / "train_parts.py"
MADE = ("red corner 1", "--n", "1", "--num-retrieved", "0")


def cm3(*arguments: str) -> int:
    return main(["--plugin", str(PLUGIN), *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    options = ["train.steps=1", "train.validation_splits=[]", f"data.cache_dir={folder / 'cache'}"]
    recipe = str(PARTS / "squares.yaml")
    assert cm3("train", recipe, "-o", str(folder / "run"), "--quiet", *options) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(trained)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "hub-cache") as hub:
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield hub


def test_a_model_is_pushed_and_drawn_with(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cm3("export", "run", "-o", "models/squares", "--push", "me/squares") == 0
    repo = hub.repos["models/me/squares"]
    page = f"{hub.address}/me/squares/commit/{repo.refs['main']}"
    assert capsys.readouterr().out == f"models/squares\n{page}\n"
    pushed, here = repo.files(), files_of(tmp_path / "models" / "squares")
    card = pushed.pop("README.md").decode()
    assert pushed.pop(".gitattributes")  # made by the Hub
    own = here.pop("README.md").decode()
    assert pushed == here
    assert len(repo.commits) == 2
    for text, name in ((card, "hf://me/squares"), (own, "squares")):
        assert text.startswith("---\nlibrary_name: cm3leon\npipeline_tag: text-to-image\n---\n")
        assert f'cm3 generate "PROMPT" --model {name} -o out' in text
        assert "| 64 | unknown |" in text or "documents | licence" in text
    for model, out in (("models/squares", "here"), ("hf://me/squares", "there")):
        assert cm3("generate", *MADE, "--model", model, "-o", out) == 0
    one, other = (open_image(tmp_path / out / "000.png") for out in ("here", "there"))
    assert np.array_equal(one, other)


def test_a_model_in_the_place_of_another(hub: FakeHub, tmp_path: Path) -> None:
    """Files of the older model go, others stay."""
    assert cm3("export", "run", "-o", "m", "--push", "me/squares", "--private") == 0
    repo = hub.repos["models/me/squares"]
    assert repo.private
    old = {"plugins/old.py": b"", "image_tokenizer/model.safetensors": b"", "CARD-a.png": b""}
    repo.commit(repo.files() | old | {"paper.pdf": b"x", "pictures/a.png": b"y"})
    (tmp_path / "m" / "CARD.md").write_text("---\nlicense: mit\n---\n# measured\n")
    (tmp_path / "m" / "CARD-b.png").write_bytes(b"z")
    assert cm3("export", "m", "--push", "hf://me/squares") == 0
    files = repo.files()
    assert not files.keys() & old.keys()
    assert (files["paper.pdf"], files["pictures/a.png"], files["CARD-b.png"]) == (b"x", b"y", b"z")
    assert files["README.md"] == b"---\nlicense: mit\n---\n# measured\n"
    assert "CARD.md" not in files


def test_a_branch(hub: FakeHub) -> None:
    assert cm3("export", "run", "-o", "m", "--push", "me/squares") == 0
    assert cm3("export", "run", "-o", "m", "--dtype", "fp32", "--push", "me/squares@full") == 0
    repo = hub.repos["models/me/squares"]
    assert set(repo.refs) == {"main", "full"}
    sizes = [len(repo.files(branch)["model.safetensors"]) for branch in ("main", "full")]
    assert sizes[0] < sizes[1]


def test_a_readme_of_ones_own(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is pushed as it is, and never replaced."""
    assert cm3("export", "run", "-o", "m") == 0
    assert cm3("export", "run", "-o", "m") == 0  # its own, which it may replace
    (tmp_path / "m" / "README.md").write_text("# Mine\n")
    assert cm3("export", "m", "--push", "me/squares") == 0
    assert hub.repos["models/me/squares"].files()["README.md"] == b"# Mine\n"
    capsys.readouterr()
    assert cm3("export", "run", "-o", "m") == 2
    assert tells(
        capsys.readouterr().err, "error: m/README.md: is there already, and was not written"
    )
    assert (tmp_path / "m" / "README.md").read_text() == "# Mine\n"


def test_only_files_of_a_model_are_pushed(hub: FakeHub, tmp_path: Path) -> None:
    assert cm3("export", "run", "-o", "m") == 0
    for name in ("notes.txt", "weights.bin", "a.py", ".env", "text_tokenizer/a.py", "LICENSE"):
        (tmp_path / "m" / name).write_text("x")
    assert cm3("export", "m", "--push", "me/squares") == 0
    files = hub.repos["models/me/squares"].files()
    assert not {"notes.txt", "weights.bin", "a.py", ".env", "text_tokenizer/a.py"} & files.keys()
    assert files["LICENSE"] == b"x"


def test_links_out_of_a_strangers_model_are_not_followed(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cm3("export", "run", "-o", "m") == 0
    shutil.copytree("m", "theirs")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "theirs" / "words.txt").unlink(missing_ok=True)
    (tmp_path / "theirs" / "words.txt").symlink_to(tmp_path / "secret")
    assert cm3("export", "theirs", "--push", "me/squares") == 2
    assert "target of the link" in capsys.readouterr().err
    assert not hub.repos


def test_what_is_refused(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ("export", "run", "-o", "m", "--push")

    def refused(*words: str) -> str:
        assert cm3(*words) == 2
        return capsys.readouterr().err

    assert tells(
        refused("export", "run"), "error: cm3 export: has no folder to write ... -o FOLDER"
    )
    assert tells(
        refused("export", "run", "--push", "me/a", "--dtype", "fp32"),
        "error: cm3 export --dtype fp32: has no effect: without -o",
    )
    assert tells(
        refused("export", "run", "-o", "m", "--private"),
        "error: cm3 export --private: has no effect",
    )
    assert tells(refused(*push, "squares"), "error: hf://squares: is not the address")
    assert tells(refused(*push, f"me/a@{'0' * 40}"), "... names a commit, which can't change")
    assert tells(
        refused("export", "run", "--push", "me/a"), "error: run: is not an exported model ... -o"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tells(refused(*push, "me/a"), "error: hf://me/a: can't be written while HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    assert tells(
        refused(*push, "me/a"),
        "error: hf://me/a: can't be written: there is no token of the Hub ... hf auth login ... HF_TOKEN",
    )
    assert not Path("m").exists()
    assert hub.requests == []


def test_what_the_hub_refuses(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cm3("export", "run", "-o", "m") == 0
    capsys.readouterr()
    monkeypatch.setenv("HF_TOKEN", READER)
    for there in (False, True):
        if there:
            hub.add("me/squares", {"a": b""})
        assert cm3("export", "m", "--push", "me/squares") == 2
        assert tells(
            capsys.readouterr().err,
            "error: hf://me/squares: may not be written with this token (403: ... write token ...",
        )
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.failing = 500
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert cm3("export", "m", "--push", "me/squares") == 2
    words = capsys.readouterr().err
    assert words.startswith("error: hf://me/squares: was not written (")
    assert "500" in words
    assert "the repository has the files that it had" in words
    hub.failing = None
    assert hub.repos["models/me/squares"].files() == {"a": b""}
