"""A model of somebody else reaches nothing outside of its folder that the user did not allow: whatever component it
names, whatever stands where a text may stand, whichever command opens it."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.commands import COMMANDS
from cm3apps.cli.main import main
from cm3core.errors import CM3Error, TrustError
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.kinds import KINDS
from cm3run.checkpoint import export_model, find_model, open_checkpoint
from cm3run.model.model import load
from cm3run.trust import trust_of
from cm3run.trust.reach import reaches_of, undeclared_keys
from fake_hub import fake_hub, files_of, use_hub
from messages import tells
from squares import exported_squares
from strangers import Watch, hostile_section, rewrite, watched

PARTS = Path(__file__).parents[2] / "fixtures" / "train"
PLUGIN = ("--plugin", str(PARTS / "train_parts.py"))
#: What is built lazily of an opened model.
BUILT = (
    "source",
    "memory",
    "embedder",
    "retriever",
    "sampler",
    "reranker",
    "upscaler",
    "objective",
)
#: Kinds that a model may name and generation may build.
NAMED = [kind for kind in KINDS if kind not in ("metric", "extractor", "condition", "task")]
REGISTRY = load_registry([PARTS / "train_parts.py"], environ={})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reaches nothing."""
    return exported_squares(tmp_path_factory.mktemp("squares"), REGISTRY)


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, as from elsewhere."""
    return Path(shutil.copytree(exported, tmp_path / "theirs"))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    with watched(tmp_path, monkeypatch) as watch:
        yield watch
    assert watch.found == []


def use(model: Path, **options: Any) -> list[CM3Error]:
    """Open a model and build all that it has; return what was raised."""
    raised = []
    try:
        parts = open_checkpoint(model, REGISTRY, **options).components
    except CM3Error as error:
        return [error]
    for name in BUILT:
        try:
            getattr(parts, name)
        except CM3Error as error:
            raised.append(error)
    return raised


#: The others name the same in other words, and are tried in the slow tests.
QUICK = ("host and port", "path")


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_component_reaches_what_its_texts_name(
    kind: str, quick: bool, exported: Path, watch: Watch, tmp_path: Path
) -> None:
    """Each bundled component of the kind, each of its texts replaced, by each thing that a text can name."""
    for name in REGISTRY.names(kind):
        config_class = REGISTRY.config_class(kind, name)
        for what, value in watch.values().items():
            section = hostile_section(config_class, name, value)
            if len(section) == 1:
                break  # it has no texts
            if (what in QUICK) != quick:
                continue
            theirs = Path(shutil.copytree(exported, tmp_path / "theirs"))
            rewrite(theirs, {kind: section})
            if kind == "retriever":  # a memory by vectors needs one
                rewrite(theirs, {"embedder": {"name": "light_encoder", "path": value}})
            with suppress(LookupError):  # words in the place of a name within the recipe
                use(theirs)
            assert watch.found == [], f"{kind} {name}: {what}"
            shutil.rmtree(theirs)


def test_every_text_of_a_bundled_component_is_declared() -> None:
    """One that holds a path and says nothing would be asked for by its looks alone."""
    bundled = load_registry(environ={})
    lacking = {
        f"{kind} {name}: {key}"
        for kind in KINDS
        for name in bundled.names(kind)
        for owner in bundled.owners(kind, name)
        for key in undeclared_keys(bundled.config_class(kind, f"{owner}/{name}"))
    }
    assert lacking == set()


def test_the_error_names_all_that_would_be_reached_and_the_options(
    model: Path, watch: Watch
) -> None:
    rewrite(
        model,
        {
            "dataset": {
                "name": "jsonl",
                "path": "/elsewhere/a.jsonl",
                "cache_dir": f"{watch.home}/.ssh",
            }
        },
    )
    parts = open_checkpoint(model, REGISTRY).components
    with pytest.raises(TrustError) as caught:
        _ = parts.source
    assert tells(
        caught.value,
        f"{model}/recipe.yaml: was not made by you ... dataset.cache_dir ... {watch.home}/.ssh",
    )
    assert use(model, trust_endpoints=["/elsewhere"])  # the other one is still refused
    assert watch.found == []


def test_what_is_not_used_is_no_reason_to_refuse(model: Path, watch: Watch) -> None:
    rewrite(
        model,
        {
            "dataset": {"name": "jsonl", "path": "/elsewhere/a.jsonl"},
            "upscaler": {"name": "external", "path": "~/x.pth"},
            "data": {"cache_dir": f"{watch.home}/.cache"},
        },
    )
    drawn = load(model, registry=REGISTRY).generate("red", 1, num_retrieved=0)
    assert len(drawn) == 1


def test_a_password_goes_nowhere_unasked(model: Path, watch: Watch) -> None:
    pgvector = {"name": "pgvector", "retry_seconds": 0}
    for keys in (
        {"host": "127.0.0.1", "port": watch.port},
        {"host": "localhost,127.0.0.1", "port": watch.port},
        {},  # the server of the environment
        {"service": "mine"},
        {"host": "/tmp"},
        {"database": f"postgresql://127.0.0.1:{watch.port}/x"},
    ):
        rewrite(model, {"retriever": pgvector | keys, "embedder": "light_encoder"})
        errors = use(model)
        assert any(isinstance(error, TrustError) for error in errors), keys
        assert watch.found == []
    # what one allows does not reach another
    rewrite(model, {"retriever": pgvector | {"host": "127.0.0.1", "port": watch.port}})
    assert use(model, trust_endpoints=[f"127.0.0.1:{watch.port + 1}", "localhost"])
    assert watch.found == []
    use(model, trust_endpoints=["127.0.0.1"])
    assert watch.found
    watch.found.clear()


def test_values_of_the_user_take_the_place_of_a_strangers(model: Path, watch: Watch) -> None:
    """Of what was refused only: another port is still their host."""
    rewrite(
        model,
        {
            "retriever": {"name": "pgvector", "host": "127.0.0.1", "port": 1},
            "embedder": {"name": "light_encoder", "path": None},
        },
    )
    opened = load(model, registry=REGISTRY)
    with pytest.raises(TrustError, match=r"retriever\.host connects to 127\.0\.0\.1:"):
        opened.with_memory(port=watch.port)
    with pytest.raises(TrustError, match=r"retriever\.host"):
        opened.with_memory(num_retrieved=1)
    assert watch.found == []
    with suppress(CM3Error):  # the user's own word for the same host
        opened.with_memory(host="127.0.0.1", port=watch.port, retry_seconds=0)
    assert watch.found
    watch.found.clear()


def test_another_retriever_keeps_a_strangers_bank_closed(model: Path, watch: Watch) -> None:
    bank = str(watch.home / "pictures")
    rewrite(model, {"retriever": {"name": "dense", "bank": bank}, "embedder": "light_encoder"})
    opened = load(model, registry=REGISTRY)
    with pytest.raises(TrustError, match=r"retriever\.bank reads"):
        opened.with_memory(retriever="bm25")
    assert watch.found == []


def test_an_adapter_opens_no_base_that_it_names(model: Path, watch: Watch) -> None:
    import json

    state = json.loads((model / "state.json").read_text())
    state["base"] = {"model": str(watch.home / "pictures"), "sha256": "0" * 64}
    (model / "state.json").write_text(json.dumps(state))
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    rewrite(model, {"tune": {"method": "lora"}})
    [error] = use(model)
    assert isinstance(error, TrustError), error
    assert "base.model reads" in str(error)
    assert "cm3 adapter merge" in str(error)


@pytest.mark.parametrize("name", ["words.txt", "text_tokenizer/more", "folder"])
def test_links_that_lead_out_are_refused(model: Path, watch: Watch, name: str) -> None:
    path = model / name
    path.unlink(missing_ok=True)
    path.symlink_to(watch.home / ".ssh" / ("" if name == "folder" else "id"))
    [error] = use(model)
    assert f"{name} reads {watch.home}/.ssh" in str(error)
    with pytest.raises(TrustError, match="target of the link"):
        export_model(model, model.parent / "copy")


def test_links_that_lead_out_of_a_bank_are_refused(
    model: Path, watch: Watch, tmp_path: Path
) -> None:
    bank = _bank(tmp_path, "")
    [shard] = (bank / "shards").iterdir()
    (shard / "documents.jsonl").unlink()
    (shard / "documents.jsonl").symlink_to(watch.home / ".ssh" / "id")
    with pytest.raises(TrustError, match=r"documents\.jsonl reads .*target of the link"):
        load(model, registry=REGISTRY, bank=bank)


def test_links_within_a_model_and_those_of_the_hub_are_files_of_it(
    model: Path, watch: Watch
) -> None:
    (model / "notes").mkdir()
    (model / "words.txt").rename(model / "notes" / "w")
    (model / "words.txt").symlink_to("notes/w")
    assert use(model) == []
    hub = model.parent / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "0123"
    shutil.move(model, snapshot)
    (snapshot / "model.safetensors").rename(hub / "blobs" / "ab")
    (snapshot / "model.safetensors").symlink_to("../../blobs/ab")
    assert use(snapshot) == []


# ---- every command


#: By command that takes a model: arguments, with "{model}" for it.
ATTACKED: dict[str, tuple[str, ...]] = {
    "generate": ("red", "--n", "1", "--upscale", "-o", "out", "--model", "{model}"),
    "complete": ("lucide", "red", "-o", "out", "--model", "{model}"),
    "caption": ("a.png", "--model", "{model}"),
    "infill": ("a.png", "--box", "0,0,8,8", "--text", "red", "-o", "o.png", "--model", "{model}"),
    "edit": ("a.png", "red", "--force", "-o", "out", "--model", "{model}"),
    "ask": ("a.png", "red?", "--force", "--max-tokens", "2", "--model", "{model}"),
    "chat": ("--say", "red", "--force", "--model", "{model}"),
    "mcp": ("--model", "{model}"),
    "sweep": ("tiny", "sampler.temperature=1,2", "-o", "out", "--model", "{model}"),
    "upscale": ("a.png", "-o", "b.png", "--model", "{model}"),
    "export": ("{model}", "-o", "copy"),
    "adapter merge": ("{model}", "-o", "merged"),
    "tune": ("{model}", str(PARTS / "squares.yaml"), "-o", "run", "train.steps=1"),
    "start": ("pictures", "--tune", "{model}", "--most-skipped", "1", "-o", "start.yaml"),
    "train": (
        str(PARTS / "squares.yaml"),
        "-o",
        "run",
        "train.steps=1",
        "train.start_from={model}",
    ),
    "provenance": ("{model}",),
    "task list": ("--model", "{model}"),
    "task show": ("template", "--model", "{model}"),
    "memory build": ("pictures", "-o", "bank", "--model", "{model}", "--quiet"),
    "memory add": ("{bank}", "pictures", "--quiet"),
    "memory recall": ("{bank}", "--queries", "1"),
    "data encode": ("pictures", "-o", "shards", "--model", "{model}"),
    "serve": ("--model", "{model}", "--port", "0"),
    "eval run": ("icons-unseen-v1", "--model", "{model}", "-o", "scores"),
    "eval card": ("{model}", "--results", "."),
    "bench precision": ("--model", "{model}", "--num", "1"),
}


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command, and each action of one, with its parser."""
    for command, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        if module:
            importlib.import_module(module).configure(parser)
        elif (configure := REGISTRY.command(command)) is not None:
            configure(parser)
        yield from _actions(command, parser)


def _actions(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        for word, one in action.choices.items():
            yield from _actions(f"{name} {word}", one)


def test_every_command_that_opens_what_others_made_has_the_option() -> None:
    """... and is attacked here."""
    has = {
        name
        for name, parser in parsers()
        if any(action.dest == "trust_endpoints" for action in parser._actions)
    }
    assert has == set(ATTACKED)
    models = {
        name
        for name, parser in parsers()
        for action in parser._actions
        if "MODEL" in str(action.metavar).split("|") or action.dest == "model"
    }
    # of models that plugins ship
    assert models - has == {"bench first-picture"}


@pytest.mark.parametrize("command", ATTACKED)
@pytest.mark.parametrize("which", ["memory", pytest.param("rest", marks=pytest.mark.slow)])
def test_no_command_reaches_what_a_model_names(
    command: str,
    which: str,
    model: Path,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "serve":
        monkeypatch.setattr("cm3serve.running.serve", _draw_with_each)
    if command == "mcp":
        pytest.importorskip("mcp", reason="the extra mcp is missing")
        monkeypatch.setattr("cm3serve.mcp.serving.serve_stdio", _draw_for_an_agent)
    monkeypatch.chdir(tmp_path)
    _inputs(tmp_path)
    home = str(watch.home / "pictures")
    if which == "memory":
        hostile: dict[str, Any] = {
            "dataset": {"name": "folder", "path": home, "cache_dir": f"{watch.home}/.ssh"},
            "retriever": {"name": "pgvector", "host": "127.0.0.1", "port": watch.port},
            "embedder": {"name": "clip", "path": home},
        }
    else:
        hostile = {
            "dataset": {"name": "tokens", "path": "s3://bucket/x", "cache_dir": home},
            "embedder": {"name": "light_encoder", "path": f"{home}/a.txt"},
            "reranker": {"name": "clip"},
            "upscaler": {"name": "external", "path": f"{home}/a.txt"},
            "sampler": {"name": "patch_knn", "bank": home, "inner": "top_p"},
        }
    rewrite(model, hostile | {"data": {"cache_dir": f"{watch.home}/.cache"}})
    bank = _bank(tmp_path, home)
    words = [word.format(model=model, bank=bank) for word in ATTACKED[command]]
    with suppress(SystemExit):
        main([*PLUGIN, *command.split(), *words])
    assert "Traceback" not in capsys.readouterr().err
    assert watch.found == [], command


@pytest.mark.slow
@pytest.mark.parametrize("command", ATTACKED)
def test_no_command_reaches_what_a_model_of_the_hub_names(
    command: str,
    model: Path,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the cache, without a connection. Each command takes the address."""
    home, address = str(watch.home / "pictures"), "hf://evil/squares"
    hostile = {
        "dataset": {"name": "folder", "path": home, "cache_dir": f"{watch.home}/.ssh"},
        "retriever": {"name": "pgvector", "host": "127.0.0.1", "port": watch.port},
        "embedder": {"name": "clip", "path": "hf://evil/embedder"},
    }
    rewrite(model, hostile | {"data": {"cache_dir": f"{watch.home}/.cache"}})
    with fake_hub(tmp_path / "downloads") as hub:
        hub.add("evil/squares", files_of(model))
        folder = find_model(address, REGISTRY)
    use_hub(monkeypatch, f"http://127.0.0.1:{watch.port}", tmp_path / "downloads", offline=True)
    watch.found.clear()
    assert find_model(address, REGISTRY) == folder
    if command == "serve":
        monkeypatch.setattr("cm3serve.running.serve", _draw_with_each)
    if command == "mcp":
        pytest.importorskip("mcp", reason="the extra mcp is missing")
        monkeypatch.setattr("cm3serve.mcp.serving.serve_stdio", _draw_for_an_agent)
    monkeypatch.chdir(tmp_path)
    _inputs(tmp_path)
    bank = _bank(tmp_path, home)
    words = [word.format(model=address, bank=bank) for word in ATTACKED[command]]
    with suppress(SystemExit):
        main([*PLUGIN, *command.split(), *words])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "does not exist" not in told
    assert watch.found == [], command


def _draw_with_each(_: object, openers: dict[str, Any]) -> int:
    """In place of a server: a picture of each of its models."""
    for opener in openers.values():
        opener().generate("red", 1)
    return 0


def _draw_for_an_agent(tools: Any) -> int:
    """In place of a server of tools: one of their calls."""
    tools._desk.draw("red", 1, 0, True)
    return 0


def _inputs(folder: Path) -> None:
    import numpy as np

    from cm3core.images import save_png

    (folder / "pictures").mkdir()
    for path in (folder / "a.png", folder / "pictures" / "a.png"):
        save_png(path, np.full((16, 16, 3), 200, np.uint8))
    (folder / "pictures" / "a.txt").write_text("red")


def _bank(folder: Path, path: str) -> Path:
    """A bank whose embedder is read from a path."""
    import json

    arguments = [
        *(
            *PLUGIN,
            "memory",
            "build",
            str(PARTS / "squares.yaml"),
            "-o",
            str(folder / "bank-of-theirs"),
        ),
        *("--quiet", "embedder=light_encoder", "dataset.num_documents=4"),
    ]
    assert main(arguments) == 0
    manifest = folder / "bank-of-theirs" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["embedder"]["config"]["path"] = path
    manifest.write_text(json.dumps(values))
    return folder / "bank-of-theirs"


def test_a_picture_opens_nothing_that_it_names(
    watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from cm3core.images import save_png

    for name, value in watch.values().items():
        metadata = {"recipe_hash": "x", "retrieved": '["a"]', "model": value, "bank": value}
        save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), metadata)
        assert main(["provenance", str(tmp_path / "a.png")]) == 0, name
        assert "no licences" in capsys.readouterr().err


# ---- what is the user's own


def test_a_run_that_this_users_command_made_may_use_what_its_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, resumed, exported and drawn with unasked; moved or copied, it asks."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    _inputs(tmp_path)
    data = ["dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.valid=0"]
    words = [*data, "retriever=random", "train.validation_splits=[]", "decoder.context_length=128"]
    run = [
        *PLUGIN,
        "train",
        str(PARTS / "squares.yaml"),
        "-o",
        str(tmp_path / "run"),
        *words,
        "--quiet",
    ]
    assert main([*run, "train.steps=1"]) == 0
    assert main([*run, "train.steps=2"]) == 0
    assert use(tmp_path / "run") == []
    assert use(export_model(tmp_path / "run", tmp_path / "model")) == []
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "run")  # back in its place, on a larger disk
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    assert use(tmp_path / "run") == []
    for other in ("copy", "moved"):
        assert {type(error) for error in use(tmp_path / other)} == {TrustError}
    assert use(tmp_path / "moved", trust_endpoints=[str(tmp_path)]) == []


def test_another_model_in_the_place_of_ones_own_may_use_no_more(
    model: Path, watch: Watch, tmp_path: Path
) -> None:
    from cm3core.interfaces.reach import READS, Reach
    from cm3run.trust import record_own

    record_own(model, [Reach(READS, "/elsewhere/mine.jsonl", "path")])
    rewrite(model, {"dataset": {"name": "jsonl", "path": "/elsewhere/mine.jsonl"}})
    assert not any(isinstance(error, TrustError) for error in use(model))
    rewrite(model, {"dataset": {"name": "jsonl", "path": str(watch.home / "pictures")}})
    assert any(isinstance(error, TrustError) for error in use(model))


def test_a_record_that_others_could_have_written_says_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cm3core.interfaces.reach import READS, Reach
    from cm3run.trust import record_own
    from cm3run.trust.reach import recorded

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    record_own(model, [Reach(READS, "/elsewhere", "path")])
    assert recorded(model) == {"/elsewhere"}
    folder = tmp_path / "state" / "cm3leon" / "own"
    folder.chmod(0o777)
    assert recorded(model) == frozenset()
    folder.chmod(0o700)
    [record] = folder.iterdir()
    record.chmod(0o666)
    assert recorded(model) == frozenset()


def test_a_folder_that_holds_more_than_a_model_makes_nothing_in_it_the_models(
    model: Path, watch: Watch, tmp_path: Path
) -> None:
    """Unpacked in one's home, or into a folder `checkpoints` of one's own."""
    from cm3core.interfaces.reach import READS, Reach

    secret = Reach(READS, str(watch.home / ".ssh" / "id"), "path")
    assert trust_of(watch.home, []).refused([secret]) == [secret]
    assert trust_of(watch.home.parent, []).refused([secret]) == [secret]
    step = tmp_path / "checkpoints" / "step-00000001"
    shutil.copytree(model, step)
    beside = Reach(READS, str(tmp_path / "a"), "path")
    assert trust_of(step, []).refused([beside]) == [beside]
    assert trust_of(step, []).refused([Reach(READS, str(step / "a"), "path")]) == []


@pytest.mark.parametrize(
    ("entry", "target", "allowed"),
    [
        ("db", "db:5432", True),
        ("DB:5432", "db:5432", True),
        ("db:5433", "db:5432", False),
        ("b", "db:5432", False),
        ("s3://bucket", "s3://bucket/a/b", True),
        ("s3://bucket/a", "s3://bucket/ab", False),
        ("s3://bucket/a", "s3://bucket/a/../b", False),
        ("s3://bucket", "simplecache::s3://bucket/a", False),
        ("host", "https://host/a", True),
        ("host", "https://me@other/host", False),
        ("/elsewhere", "/elsewhere/a", True),
        ("/elsewhere", "/elsewhere2", False),
        ("/elsewhere", "/elsewhere/../a", False),
        ("libpq", "libpq", True),
        ("/", "/a", True),
    ],
)
def test_what_an_entry_allows(entry: str, target: str, allowed: bool, tmp_path: Path) -> None:
    from cm3core.interfaces.reach import CONNECTS, READS, Reach

    how = READS if target.startswith("/") else CONNECTS
    assert (trust_of(tmp_path, [], [entry]).refused([Reach(how, target, "key")]) == []) == allowed


@pytest.mark.parametrize("entry", ["", " ", "*", "*.example", " db", "a\0b"])
def test_what_is_no_entry(entry: str, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="is not a host, address or path"):
        trust_of(tmp_path, [], [entry])


def test_what_a_plugin_ships_is_trusted_as_the_plugin(model: Path) -> None:
    from cm3core.interfaces.reach import READS, Reach

    reach = Reach(READS, "/elsewhere", "path")
    assert trust_of(model, [model.parent]).refused([reach]) == []
    assert trust_of(model, [model / "inner"]).refused([reach]) == [reach]


def registry_with(config_class: type[Any]) -> Registry:
    from cm3core.plugins import PluginInfo

    registry = load_registry([PARTS / "train_parts.py"], environ={})
    registry.add(PluginInfo("third", "1", "x"), {"upscaler": {"third": config_class}}, {})
    return registry


def test_a_plugin_that_declares_nothing_is_asked_for_by_its_looks(model: Path) -> None:
    """What holds a path or a host by its key's name, or by its value, is outside."""
    from dataclasses import dataclass

    from cm3core.interfaces import UpscalerConfig

    global Third

    @dataclass(kw_only=True)
    class Third(UpscalerConfig):
        host: str = "localhost"
        prompt: str = ""
        more: dict[str, str] | None = None
        weights: dict[str, float] | None = None

    found = {
        (reach.key, reach.target)
        for config in (
            Third(host="db", prompt="a red/green bell"),
            Third(prompt="~/x", more={"a": "s3:/b/c"}),
            Third(prompt="10.0.0.1:80"),
            Third(weights={"answer": 2.0}),  # names of parts
            Third(),
        )
        for reach in reaches_of(config)
    }
    assert found == {
        ("host", "db"),
        ("prompt", str(Path.home() / "x")),
        ("more", "s3://b/c"),
        ("prompt", "10.0.0.1:80"),
    }
