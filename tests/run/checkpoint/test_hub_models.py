"""Models on the Hugging Face Hub: the package's own client, and a Hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants, errors
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError, DataError, TrustError
from cm3core.plugins import load_registry
from cm3run.checkpoint import (
    export_model,
    find_checkpoint,
    find_model,
    lasting_name,
    open_checkpoint,
    read_state,
)
from cm3run.hub import repo_of
from cm3run.hub.address import Kind
from cm3run.model.model import load
from fake_hub import READER, FakeHub, fake_hub, files_of, forget_downloads
from messages import tells
from squares import exported_squares
from strangers import rewrite

PARTS = Path(__file__).parents[2] / "fixtures" / "train"
PLUGIN = PARTS / "train_parts.py"
REGISTRY = load_registry([PLUGIN], environ={})
NAME = "hf://me/squares"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_squares(tmp_path_factory.mktemp("squares"), REGISTRY)


@pytest.fixture
def hub(tmp_path: Path, exported: Path) -> Iterator[FakeHub]:
    """A Hub with the model."""
    with fake_hub(tmp_path / "cache") as hub:
        hub.add("me/squares", files_of(exported))
        yield hub


def refused(name: str = NAME) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_model(name, REGISTRY)
    return caught.value


def says(error: CheckpointError, *words: str) -> bool:
    """As `tells`, for messages with words of the package, which differ between its versions."""
    text, place = str(error), 0
    for word in words:
        assert word in text[place:], f"{text}\nlacks, in this order, {word}"
        place = text.index(word, place) + len(word)
    return True


@pytest.mark.parametrize(
    ("address", "repo"),
    [
        ("hf://me/a", ("model", "me/a", "", "")),
        (Path("hf://me/a"), ("model", "me/a", "", "")),
        ("HF://me/a.b-c_d@v1.0/", ("model", "me/a.b-c_d", "v1.0", "")),
        ("hf://me/a@refs/pr/3", ("model", "me/a", "refs/pr/3", "")),
        ("hf://datasets/me/a", ("dataset", "me/a", "", "")),
        ("hf://datasets/me/a@v1/b/{0..3}.tar", ("dataset", "me/a", "v1", "b/{0..3}.tar")),
        ("hf://datasets/me/a@refs/pr/3/b", ("dataset", "me/a", "refs/pr/3", "b")),
    ],
)
def test_what_an_address_names(address: str | Path, repo: tuple[Kind, str, str, str]) -> None:
    found = repo_of(address, kind=repo[0])
    assert (found.kind, found.id, found.revision, found.path) == repo


@pytest.mark.parametrize(
    "address",
    [
        *("hf://", "hf://me", "hf://me/", "hf://me/a/b", "hf://../a", "hf://me/..", "hf://me/a@"),
        *("hf://me/a@..", "hf://me/a@.", "hf://me/a@refs/pr/..", "hf://me/a@refs/heads/x"),
        *("hf://me/a@-x/../y", "hf://me/a b", "hf://me/a\n", "hf://spaces/me/a", "hf://me/a?b"),
        *("hf://datasets/me/a/../b", "hf://datasets/me", "hf://datasets/me/a/b\x1b[2J"),
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not the address|names a data set"):
        repo_of(address, kind="model")


PARTS_OF_ADDRESSES = st.sampled_from(
    [
        "datasets",
        "me",
        "a.b",
        "..",
        ".",
        "",
        "@",
        "@v1",
        "@refs/pr/1",
        "x",
        "*.tar",
        "{0..9}",
        "\n",
        "é",
        "~",
    ]
)


@given(st.lists(PARTS_OF_ADDRESSES | st.text(max_size=3), max_size=6), st.sampled_from(["/", ""]))
def test_any_address_is_refused_or_stays_in_its_repository(parts: list[str], between: str) -> None:
    address = "hf://" + between.join(parts)
    for kind in ("model", "dataset"):
        try:
            repo = repo_of(address, kind=kind)
        except (CheckpointError, DataError):
            continue
        assert repo_of(str(repo), kind=repo.kind) == repo
        names = [*repo.id.split("/"), *repo.revision.split("/"), *repo.path.split("/")]
        assert not {".", ".."} & set(names)
        assert len(repo.id.split("/")) == 2


def test_a_model_of_the_hub_is_the_one_that_was_exported(hub: FakeHub, exported: Path) -> None:
    commit = hub.repos["models/me/squares"].refs["main"]
    [here] = load(exported, registry=REGISTRY).generate("red", 1, seed=3, num_retrieved=0)
    model = load(NAME, registry=REGISTRY)
    [there] = model.generate("red", 1, seed=3, num_retrieved=0)
    assert (there.pixels == here.pixels).all()
    assert model.name == lasting_name(NAME, REGISTRY) == f"{NAME}@{commit}"


def test_a_process_keeps_to_one_commit_and_the_next_sees_the_newest(hub: FakeHub) -> None:
    repo = hub.repos["models/me/squares"]
    first, files = repo.refs["main"], repo.files()
    assert find_model(NAME, REGISTRY).name == first
    second = repo.commit({**files, "words.txt": b"red\n"})
    assert find_model(NAME, REGISTRY).name == first
    assert find_model(f"{NAME}@{second}", REGISTRY).name == second
    forget_downloads()
    assert find_model(NAME, REGISTRY).name == second
    assert find_model(f"{NAME}@{first}", REGISTRY).name == first
    repo.refs["v1"] = first
    assert find_model(f"{NAME}@v1", REGISTRY).name == first


def test_only_files_that_are_read_are_fetched(hub: FakeHub, exported: Path) -> None:
    """Pickles, code and pictures stay where they are; so do files in folders of folders."""
    never = [
        *("pytorch_model.bin", "model.pt", "optimizer.safetensors", "README.md", "setup.py"),
        *("text_tokenizer/a.pt", "text_tokenizer/a.py", "image_tokenizer/a.bin", "a.ckpt"),
        *("text_tokenizer/deep/a.json", ".gitattributes", "CARD.md", "x/state.json"),
    ]
    hub.add("me/squares", files_of(exported) | dict.fromkeys(never, b"evil"))
    folder = find_model(NAME, REGISTRY)
    assert set(hub.downloads()) == set(files_of(exported)) - {"README.md"}
    assert set(files_of(folder)) == set(files_of(exported)) - {"README.md"}


# ---- what goes wrong


def test_without_a_connection_the_download_is_used(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = find_model(NAME, REGISTRY)
    forget_downloads()
    hub.failing = 503
    assert find_model(NAME, REGISTRY) == folder
    assert "the Hub can't be reached" in caplog.text
    forget_downloads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert find_model(NAME, REGISTRY) == folder
    assert find_model(f"{NAME}@{folder.name}", REGISTRY) == folder
    assert len(hub.requests) == asked
    assert tells(
        refused("hf://me/other"),
        "hf://me/other: is not in the cache of downloads ... HF_HUB_OFFLINE forbids connections ... unset HF_HUB_OFFLINE",
    )
    assert tells(refused(f"{NAME}@v2"), "... is not in the cache ... HF_HUB_OFFLINE")
    assert len(hub.requests) == asked


def test_a_commit_that_was_downloaded_needs_no_connection(hub: FakeHub) -> None:
    folder = find_model(NAME, REGISTRY)
    hub.failing = 503
    asked = len(hub.requests)
    assert find_model(f"{NAME}@{folder.name}", REGISTRY) == folder
    if hasattr(errors, "IncompleteSnapshotError"):  # the package knows that nothing is missing
        assert len(hub.requests) == asked


def test_an_unreachable_hub(hub: FakeHub) -> None:
    hub.failing = 503
    assert says(refused(), f"{NAME}: can't be reached (", "503", "), and is not in the cache")


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", '{"id": "me/squares", "siblings": 1}'])
def test_a_server_that_is_no_hub(hub: FakeHub, answer: str) -> None:
    hub.answer = answer.encode()
    step = "check the connection and HF_ENDPOINT"
    assert says(refused(), f"{NAME}: can't be reached (", "not in the cache", step)


def test_nothing_listens(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ENDPOINT": "http://127.0.0.1:9",
        "HUGGINGFACE_CO_URL_TEMPLATE": "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    assert says(refused(), f"{NAME}: can't be reached (", "check the connection and HF_ENDPOINT")


def test_missing_repositories_and_revisions(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    page = f"{hub.address}/me/squares"
    assert tells(
        refused("hf://me/none"),
        "hf://me/none: is not on 127.0.0.1 ... or is private (no token was sent)",
    )
    assert tells(refused(f"{NAME}@v9"), f"{NAME}@v9: has no revision 'v9' ... {page}/commits/main")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert tells(
        refused("hf://me/none"), "... is not on 127.0.0.1 ... or is private and the token may not"
    )
    assert says(refused("hf://a--b/c"), "hf://a--b/c: is no valid name", "correct the name")


def test_private_and_gated_repositories(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repos["models/me/squares"]
    repo.private = True
    assert tells(refused(), "... or is private (no token was sent) ... hf auth login ... HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert tells(refused(), "... may not be read with this token (401: Invalid credentials ...")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert find_model(NAME, REGISTRY).is_dir()
    assert READER in hub.tokens
    forget_downloads()
    repo.private, repo.gated = False, True
    assert tells(refused(), f"... is gated ... your account has none ... {hub.address}/me/squares")
    monkeypatch.delenv("HF_TOKEN")
    assert tells(refused(), "... is gated ... no token says who asks ... HF_TOKEN")


def test_an_interrupted_download_goes_on(
    hub: FakeHub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the files that are incomplete, and where these stopped."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut["model.safetensors"] = 0
    assert says(refused(), f"{NAME}: was not downloaded as a whole (", "complete files are kept")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tells(refused(), "... as a whole: the download was interrupted, and HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    del hub.cut["model.safetensors"]
    before = len(hub.downloads())
    folder = find_model(NAME, REGISTRY)
    assert hub.downloads()[before:].count("model.safetensors") == 1
    assert len(set(hub.downloads()[before:])) < len(files_of(exported))
    assert files_of(folder) == files_of(exported)
    forget_downloads()
    hub.add("me/squares", files_of(exported) | {"model.safetensors": bytes(50_000)})
    hub.cut["model.safetensors"] = 20_000
    with suppress(CheckpointError):  # before 1.0, the package goes on when it is called again
        find_model(NAME, REGISTRY)
    assert (find_model(NAME, REGISTRY) / "model.safetensors").read_bytes() == bytes(50_000)
    assert hub.ranges == ["model.safetensors 20000"]


def test_a_cache_that_cannot_be_written(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert says(refused(), f"{NAME}: can't be stored in the cache of downloads (", "set HF_HOME to")


def test_repositories_without_a_model_name_what_they_hold(hub: FakeHub, exported: Path) -> None:
    hub.add("me/empty", {})
    assert tells(refused("hf://me/empty"), "... contains no model of this framework, it is empty")
    other = dict.fromkeys(("model.safetensors", ".gitattributes", "x/a", "config.json"), b"x")
    hub.add("me/gpt", other)
    assert tells(
        refused("hf://me/gpt"),
        "... contains no model of this framework, it has config.json, model.safetensors, x/a, .gitattributes ... "
        "cm3 convert FOLDER",
    )
    run = {f"checkpoints/step-00000001/{name}": b"" for name in files_of(exported)}
    hub.add("me/run", run)
    assert tells(refused("hf://me/run"), "... and ... more ... has a run's checkpoints: ... --push")
    assert hub.downloads() == []
    hub.add("me/names", {"a\x1b[2J\n": b""})
    assert "\x1b" not in str(refused("hf://me/names"))


def test_addresses_of_data_sets_are_no_models(hub: FakeHub) -> None:
    assert tells(refused("hf://datasets/me/a"), "... names a data set, not a model")


# ---- a stranger's model


def test_a_strangers_plugin_runs_only_with_permission(hub: FakeHub) -> None:
    bare = load_registry(environ={})
    with pytest.raises(CheckpointError) as caught:
        load(NAME, registry=bare)
    assert tells(caught.value, "... needs a plugin that is not loaded ... --trust-plugin")
    digest = str(caught.value).split("(SHA-256 ")[1].split(")")[0]
    model = load(NAME, registry=bare, trust_plugins=[digest])
    assert len(model.generate("red", 1, num_retrieved=0)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {f"plugins/p{number}.py": b"" for number in range(9)},
        {"plugins/large.py": b" " * (256 * 1024 + 1)},
        {"plugins/a.pth": b""},
        {"plugins/deep/a.py": b""},
    ],
)
def test_plugin_files_that_no_export_has(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add("me/squares", hub.repos["models/me/squares"].files() | files)
    assert tells(refused(), "... contains plugins/ ... which is not one of at most 8 plugin files")
    assert hub.downloads() == []


def test_links_in_the_place_of_a_download_lead_nowhere(hub: FakeHub, tmp_path: Path) -> None:
    """Those of the cache are files of the model; others are refused, as in any model."""
    folder = find_model(NAME, REGISTRY)
    assert (folder / "model.safetensors").is_symlink()
    open_checkpoint(folder, REGISTRY)
    (tmp_path / "secret.py").write_text("")
    for name in ("words.txt", "plugins/more.py"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret.py")
        with pytest.raises(
            (TrustError, CheckpointError), match=r"words\.txt reads|more\.py: is not"
        ):
            open_checkpoint(folder, REGISTRY, trust_plugins=["0" * 16] if "more" in name else [])
        (folder / name).unlink()


def test_files_that_repositories_share_are_files_of_the_model(hub: FakeHub, exported: Path) -> None:
    """The layout of the package's store of Xet files."""
    folder = find_model(NAME, REGISTRY)
    shared = Path(constants.HF_HUB_CACHE) / "blobs"
    (shared / "ab").mkdir(parents=True)
    blob = (folder / "model.safetensors").resolve()
    blob.rename(shared / "ab" / "abcd")
    blob.symlink_to(shared / "ab" / "abcd")
    with pytest.raises(TrustError, match="target of the link"):
        open_checkpoint(folder, REGISTRY)
    (shared / ".huggingface-shared-blobs").write_text("1\n")
    open_checkpoint(folder, REGISTRY)


def test_what_a_model_of_the_hub_names_is_not_used(
    hub: FakeHub, exported: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(exported, tmp_path / "theirs"))
    secret = tmp_path / "secret.jsonl"
    secret.write_text("{}")
    rewrite(theirs, {"dataset": {"name": "jsonl", "path": str(secret)}})
    commit = hub.add("evil/squares", files_of(theirs)).refs["main"]
    parts = load("hf://evil/squares", registry=REGISTRY).components
    with pytest.raises(TrustError) as caught:
        _ = parts.source
    assert tells(
        caught.value,
        f"... {commit}/recipe.yaml: was not made by you ... dataset.path reads {secret} ... --trust-endpoints",
    )
    for name in ("hf://evil/more", "hf://datasets/evil/more"):
        rewrite(theirs, {"dataset": {"name": "folder", "path": name}})
        hub.add("evil/squares", files_of(theirs))
        forget_downloads()
        parts = load("hf://evil/squares", registry=REGISTRY).components
        with pytest.raises(TrustError, match=f"dataset.path connects to {name}"):
            _ = parts.source
    assert not any("evil/more" in one for one in hub.requests)
    copy = export_model(find_model("hf://evil/squares", REGISTRY), tmp_path / "copy")
    parts = open_checkpoint(copy, REGISTRY).components
    with pytest.raises(TrustError):
        _ = parts.source


def test_a_base_on_the_hub_is_fetched_for_those_alone_who_trust_it(
    hub: FakeHub, exported: Path, tmp_path: Path
) -> None:
    state = json.loads((exported / "state.json").read_text())
    state["base"] = {"model": "hf://evil/base", "sha256": "0" * 64}
    files = files_of(exported) | {"state.json": json.dumps(state).encode()}
    files["adapter_model.safetensors"] = files.pop("model.safetensors")
    recipe = files["recipe.yaml"].decode()
    files["recipe.yaml"] = recipe.replace("method: full", "method: lora").encode()
    hub.add("evil/adapter", files | {"adapter_config.json": b"{}"})
    with pytest.raises(TrustError, match=r"base\.model connects to hf://evil/base"):
        load("hf://evil/adapter", registry=REGISTRY)
    assert not any("evil/base" in one for one in hub.requests)
    with pytest.raises(CheckpointError, match="is not on"):
        load("hf://evil/adapter", registry=REGISTRY, trust_endpoints=["hf://evil/base"])
    assert any("evil/base" in one for one in hub.requests)


# ---- commands


@pytest.mark.slow
def test_a_run_that_starts_from_the_hub_names_the_commit(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.repos["models/me/squares"].refs["main"]
    words = ["--plugin", str(PLUGIN), "tune", NAME, str(PARTS / "squares.yaml")]
    run = tmp_path / "run"
    assert (
        main([*words, "-o", str(run), "--quiet", "train.steps=1", "decoder.context_length=128"])
        == 0
    )
    state = read_state(find_checkpoint(run))
    assert state.base["model"] == f"{NAME}@{commit}"
    capsys.readouterr()
    assert main([*words[:2], "provenance", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == f"{NAME}@{commit}"


def test_an_adapter_finds_its_base_on_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that it was trained on, which is in the cache; a copy of the run asks."""
    pytest.importorskip("peft", reason="the extra lora is missing")
    run, commit = tmp_path / "run", hub.repos["models/me/squares"].refs["main"]
    words = ["--plugin", str(PLUGIN), "tune", NAME, str(PARTS / "squares.yaml"), "-o", str(run)]
    keys = ["tune.method=lora", "train.steps=1", "decoder.context_length=128"]
    assert main([*words, "--quiet", *keys]) == 0
    hub.add("me/squares", {"state.json": b"{}"})  # another model, since
    forget_downloads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(load(run, registry=REGISTRY).generate("red", 1, num_retrieved=0)) == 1
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(TrustError, match=f"base.model connects to {NAME}@{commit}"):
        load(copy, registry=REGISTRY)
    assert load(copy, registry=REGISTRY, trust_endpoints=[f"{NAME}@{commit}"])


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(hub: FakeHub, tmp_path: Path) -> None:
    """The package reads its variables itself; a picture names the commit."""
    arguments = [
        "--plugin",
        str(PLUGIN),
        "generate",
        "red",
        "--model",
        NAME,
        "--num-retrieved",
        "0",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cm3apps.cli.main",
            *arguments,
            "-o",
            str(tmp_path / "out"),
            "--n",
            "1",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CM3_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Fetching" not in done.stderr
    from cm3run.attribution import facts_in

    picture = tmp_path / "out" / "000.png"
    commit = hub.repos["models/me/squares"].refs["main"]
    facts = facts_in(picture.read_bytes(), str(picture))
    assert facts.texts["model"] == f"{NAME}@{commit}"
