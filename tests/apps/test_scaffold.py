"""`cm3 plugin new`: names, messages, and files that are all there or not at all. The projects' own
tests: tests/packaging."""

from __future__ import annotations

import ast
import errno
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.catalog import summary
from cm3apps.cli import plugin
from cm3apps.cli.main import main
from cm3apps.scaffold import (
    FIELD,
    TEMPLATES,
    Plan,
    fill,
    plan_project,
    template,
    template_forms,
    template_kinds,
    write_project,
)
from cm3core import hookspecs
from cm3core.errors import FileError, PluginError
from cm3core.plugins import KINDS, PluginInfo, Registry, load_registry
from messages import tells

CHOOSE = "choose another name"
#: Kinds that `cm3 plugin new` can't write; a new kind is named here, or gets a template.
WITHOUT_TEMPLATE: set[str] = set()
WRITTEN = [kind for kind in KINDS if kind not in WITHOUT_TEMPLATE]
RULE = "use lower-case letters and digits, with single '-' or '_' between, a letter first"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs `cm3 plugin new ...` in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        assert main(["plugin", "new", *arguments]) == code
        out, err = capsys.readouterr()
        return out or err

    return run


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_the_command_says_what_to_type_next(shown: Callable[..., str], tmp_path: Path) -> None:
    assert shown("nibble", "--kind", "text_tokenizer") == (
        "cm3-nibble: the text tokenizer 'nibble', 10 files\n"
        "  start in cm3_nibble/__init__.py\n\n"
        "next:\n  cd cm3-nibble\n  pip install -e '.[test]'\n  python -m pytest\n\n"
        "README.md explains how to use, check and publish it\n"
    )
    assert files(tmp_path / "cm3-nibble") == [
        ".github/workflows/publish.yml",
        ".github/workflows/test.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "cm3_nibble/__init__.py",
        "cm3_nibble/py.typed",
        "pyproject.toml",
        "tests/test_cm3_nibble.py",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["cm3-nibble"]


def test_another_folder(shown: Callable[..., str], tmp_path: Path) -> None:
    printed = shown(
        "mine", "--kind", "sampler", "-o", "my plugins/mine", "--author", "Ada L <ada@example.org>"
    )
    assert printed.startswith("my plugins/mine: the sampler 'mine', 11 files\n")
    assert "\n  cd 'my plugins/mine'\n" in printed
    project = tomllib.loads(
        (tmp_path / "my plugins" / "mine" / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert project["authors"] == [{"name": "Ada L", "email": "ada@example.org"}]
    assert re.search(
        r"^Copyright \(c\) \d{4} Ada L$",
        (tmp_path / "my plugins/mine/LICENSE").read_text(),
        re.MULTILINE,
    )


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_project_is_whole(kind: str, tmp_path: Path, registry: Registry) -> None:
    """Every template is filled, what is Python is valid, the metadata and the README name what is
    there."""
    plan = plan_project("my-new_thing", kind, registry, folder=tmp_path / "project")
    assert (plan.distribution, plan.package) == ("cm3-my-new-thing", "cm3_my_new_thing")
    assert sorted(write_project(plan)) == files(plan.folder)
    texts = {name: (plan.folder / name).read_text(encoding="utf-8") for name in files(plan.folder)}
    for name, text in texts.items():
        assert not FIELD.search(text), name
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["name"] == plan.distribution
    assert "authors" not in project
    assert project["entry-points"] == {"cm3core.plugins": {"my-new_thing": plan.package}}
    module = texts[f"{plan.package}/__init__.py"]
    assert "CM3_API = 1 " in module
    assert f"def {KINDS[kind].hook}()" in module
    assert f'{{"my-new_thing": {plan.class_name}Config}}' in module
    assert "  name: my-new_thing\n```" in texts["README.md"]
    mentioned = set(re.findall(r"^\| `([\w./]+)` \|", texts["README.md"], re.MULTILINE))
    assert mentioned == {name for name in texts if name.endswith(".py")}
    assert "(plugin API 1)" in texts["CHANGELOG.md"]
    assert "cm3 plugin check my-new_thing\n" in texts[".github/workflows/test.yml"]


@pytest.mark.parametrize(
    ("version", "window"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("2.3.1", ">=2.3,<3")],
)
def test_the_window_of_versions(version: str, window: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.0 a minor version may break things; afterwards only a major one."""
    monkeypatch.setattr("cm3apps.scaffold.__version__", version)
    assert Plan("mine", "sampler", Path()).fields["window"] == window


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "Nibble",
            "sampler",
            f"cm3 plugin new Nibble: 'Nibble' can't be ... {RULE}",
        ),
        (
            "MyThing",
            "sampler",
            f"cm3 plugin new MyThing: 'MyThing' can't be ... {RULE}",
        ),
        (
            "a b",
            "sampler",
            f"cm3 plugin new 'a b': 'a b' can't ... {RULE}",
        ),
        (
            "a__b",
            "sampler",
            f"cm3 plugin new a__b: 'a__b' can't be ... {RULE}",
        ),
        (
            "trailing-",
            "sampler",
            f"cm3 plugin new trailing-: 'trailing-' can't be ... {RULE}",
        ),
        ("4x", "upscaler", f"cm3 plugin new 4x: '4x' can't be ... {RULE}"),
        (
            "../x",
            "sampler",
            f"cm3 plugin new ../x: '../x' can't be ... {RULE}",
        ),
        ("", "sampler", f"cm3 plugin new '': '' can't be a component's name\n  next: {RULE}"),
        (
            "x" * 41,
            "sampler",
            f"cm3 plugin new {'x' * 41}: the name has 41 ... use 40",
        ),
        (
            "cm3-nibble",
            "sampler",
            "cm3 plugin new cm3-nibble: the name begins ... 'cm3-'",
        ),
        (
            "cm3_nibble",
            "sampler",
            "cm3 plugin new cm3_nibble: the name begins ... 'cm3_'",
        ),
        (
            "cfg",
            "sampler",
            f"cm3 plugin new cfg: the plugin 'bundled' ... 'cfg' ... {CHOOSE}",
        ),
        (
            "text",
            "text_tokenizer",
            f"cm3 plugin new text: its class would ... TextTokenizer ... {CHOOSE}",
        ),
        (
            "attention",
            "attention",
            "cm3 plugin new attention: its class would",
        ),
        (
            "mine",
            "samplr",
            "--kind samplr: there is no ... 'samplr' ... 'sampler'",
        ),
    ],
)
def test_names_that_cant_be(
    name: str, kind: str, message: str, registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(PluginError) as caught:
        plan_project(name, kind, registry, folder=tmp_path / "project")
    assert tells(caught.value, message)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_free(registry: Registry, tmp_path: Path) -> None:
    assert (
        plan_project("cfg", "upscaler", registry, folder=tmp_path / "project").class_name
        == "CfgUpscaler"
    )


def test_names_of_what_is_installed(registry: Registry, tmp_path: Path) -> None:
    """A plugin of the name, and a package that would be hidden."""
    with pytest.raises(
        PluginError,
        match=r"^cm3 plugin new bundled: a plugin 'bundled' is already installed \(cm3leon, ",
    ):
        plan_project("bundled", "sampler", registry, folder=tmp_path / "project")
    own = Registry()
    own.add(PluginInfo("mine", "1", "cm3-mine, cm3_mine"), {}, {})
    with pytest.raises(PluginError) as caught:
        plan_project("mine", "sampler", own, folder=tmp_path / "project")
    assert tells(caught.value, f"cm3 plugin new mine: a plugin 'mine' ... cm3_mine ... {CHOOSE}")


def test_a_package_that_is_installed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cm3_hidden.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as caught:
        plan_project("hidden", "sampler", registry, folder=tmp_path / "project")
    assert tells(caught.value, f"cm3 plugin new hidden: a package 'cm3_hidden' ... {CHOOSE}")


@pytest.mark.parametrize("author", ["Ada <ada>", 'A "B"', "a\nb", "<<<"])
def test_what_is_no_author(author: str, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        plan_project("mine", "sampler", registry, folder=tmp_path / "project", author=author)
    assert tells(caught.value, f"--author {author!r}: is not an author ... --author 'Name'")


def test_no_kind(shown: Callable[..., str]) -> None:
    assert shown("mine", code=2) == (
        "error: cm3 plugin new mine: no kind is given\n  next: give --kind, one of "
        "text_tokenizer, image_tokenizer, "
        "layout, embedder, retriever, objective, decoder, attention, sampler, reranker, upscaler, dataset, "
        "extractor, metric, task, condition, tracker\n"
    )


def test_the_help_says_what_each_kind_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plugin", "new", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "  text_tokenizer   text <-> ids" in lines
    assert "  upscaler         a picture -> the same, several times as large" in lines
    first = lines.index("kinds:") + 1
    described = [line.split(maxsplit=1) for line in lines[first : first + len(WRITTEN)]]
    assert [kind for kind, _ in described] == WRITTEN


def test_nothing_is_written_over(shown: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cm3-mine").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for place, arguments in (("cm3-mine", []), ("file", ["-o", "file"]), ("link", ["-o", "link"])):
        assert shown("mine", "--kind", "sampler", *arguments, code=2) == (
            f"error: {place}: already exists and is not overwritten\n"
            "  next: name another folder with -o, or remove this one\n"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cm3-mine", "file", "link"]


def test_a_place_that_cant_be_written(shown: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert shown("mine", "--kind", "sampler", "-o", "file/project", code=2) == (
        f"error: file/project: can't be written ({tmp_path / 'file'} is a file)\n  next: name a "
        "place where you may write\n"
    )


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_it_is_whole_or_not_there(
    failure: BaseException, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the writing, in the middle of it: no folder, and nothing beside it."""
    plan, written = plan_project("mine", "sampler", registry, folder=tmp_path / "project"), []
    write_text = Path.write_text

    def fails_at_the_fifth(self: Path, *arguments: Any, **options: Any) -> int:
        written.append(self)
        if len(written) == 5:
            raise failure
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fails_at_the_fifth)
    with pytest.raises(
        KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else FileError
    ) as caught:
        write_project(plan)
    if isinstance(caught.value, FileError):
        assert tells(caught.value, f"{plan.folder}: can't be written (No space left")
    assert len(written) == 5
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("<<nothing>>", {})


def test_there_are_templates_for_every_kind_and_no_more() -> None:
    assert set(KINDS) >= WITHOUT_TEMPLATE
    assert {path.name for path in TEMPLATES.iterdir()} == {"project", *KINDS} - WITHOUT_TEMPLATE
    assert template_kinds() == WRITTEN
    for kind in WRITTEN:
        forms = template_forms(kind)
        for form in ("", *forms):
            folder = TEMPLATES / kind / form
            files = {path.name.removesuffix(".in") for path in folder.iterdir()} - set(forms)
            assert files == {
                "__init__.py",
                "test.py",
                "template.toml",
                *template(kind, form).modules,
            }


def test_the_help_of_the_command_names_these_kinds_as_their_hooks_do() -> None:
    assert list(plugin.KINDS) == template_kinds()
    for kind, line in plugin.KINDS.items():
        told = summary(inspect.getdoc(getattr(hookspecs, KINDS[kind].hook)) or "")
        sentence = told.partition(". ")[0].removesuffix(".")
        assert line == sentence.partition(": ")[2] or line == sentence[:1].lower() + sentence[1:]


def test_a_kind_without_a_template_is_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    for kind in ("upscaler", "attention"):
        (tmp_path / "templates" / kind / "template.toml").unlink()
    monkeypatch.setattr("cm3apps.scaffold.TEMPLATES", tmp_path / "templates")
    for kind, words in (("upscaler", "an upscaler"), ("attention", "an attention backend")):
        with pytest.raises(PluginError) as caught:
            plan_project("mine", kind, registry, folder=tmp_path / "project")
        assert tells(
            caught.value, f"--kind {kind}: there is no ... {words} ... `cm3 describe {kind}`"
        )


def test_it_needs_no_torch() -> None:
    script = (
        "import sys\nfrom cm3apps.cli.main import main\n"
        "try: main(['plugin', 'new', 'Bad', '--kind', 'decoder'])\nfinally: print(*{'torch', "
        "'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


@pytest.mark.parametrize("form", ["sequence", "places"])
def test_other_forms_of_an_image_tokenizer_work(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    """Its laws are tested where projects are installed; here it encodes, and keeps the rules of its form."""
    name = f"own-{form}"
    plan = plan_project(name, ("image_tokenizer", form), registry, folder=tmp_path / name)
    write_project(plan)
    monkeypatch.syspath_prepend(tmp_path / name)
    module = importlib.import_module(plan.package)
    [config] = module.cm3_image_tokenizers().values()
    tokenizer = config().build()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    codes = tokenizer.encode(pixels)
    assert tokenizer.form.strange_place(codes) is None
    assert (tokenizer.form.is_sequence, tokenizer.form.depth) == (
        (True, 1) if form == "sequence" else (False, 3)
    )
    assert np.abs(tokenizer.decode(codes).astype(int) - pixels).mean() < 80
    assert (
        f"class {plan.class_name}" in (tmp_path / name / plan.package / "__init__.py").read_text()
    )


def test_a_form_that_a_kind_has_not(shown: Callable[..., str]) -> None:
    for kind, step in (
        ("image_tokenizer", "use places or sequence, or leave --form out"),
        ("sampler", "leave --form out"),
    ):
        said = shown("mine", "--kind", kind, "--form", "tree", code=2)
        assert tells(said, f"error: --form tree: there is no template ... {step}")
