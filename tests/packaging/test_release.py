"""A release needs a tag and nothing else: versions, changelog, citation, workflows and `.ci/run` are in step."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.licenses import canonicalize_license_expression

ROOT = Path(__file__).parents[2]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A module of .ci, which is no package."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release, readme = script("release"), script("readme")
PROJECTS = {
    project["name"]: project
    for path in release.projects(ROOT)
    for project in [tomllib.loads(path.read_text(encoding="utf-8"))["project"]]
}


def workflow(name: str) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    read: dict[Any, Any] = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in read.items()}


def steps(job: dict[str, Any]) -> str:
    """The shell commands of a job."""
    return "\n".join(step.get("run", "") for step in job["steps"])


def first(pattern: str, text: str) -> str:
    """The first group of a pattern, whose `^` and `$` are the ends of lines; it must be found."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, pattern
    return str(found[1])


# What is stated


def test_versions_changelog_and_citation_are_in_step() -> None:
    assert list(release.problems(ROOT)) == []


def test_the_changelog_is_in_form() -> None:
    (unreleased, _, _), *versions = release.parts(ROOT)
    assert unreleased == "Unreleased"
    known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"]
    for version, _, text in versions:
        titles = re.findall(r"^### (.+)$", text, re.MULTILINE)
        assert titles == [title for title in known if title in titles], version


@pytest.mark.parametrize("name", PROJECTS)
def test_the_metadata_are_whole(name: str) -> None:
    project = PROJECTS[name]
    assert project["authors"] == [{"name": "The cm3leon authors"}]
    assert "The cm3leon authors" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert canonicalize_license_expression(project["license"]) == project["license"]
    assert "LICENSE" in project["license-files"]
    assert not [one for one in project["classifiers"] if one.startswith("License ::")]
    assert len(project["keywords"]) > 2
    assert len(project["description"]) > 30
    assert project["urls"]["Paper"].endswith("2309.02591")
    oldest = project["requires-python"].removeprefix(">=")
    stated = [one.rpartition(" ")[2] for one in project["classifiers"] if ":: 3." in one]
    assert stated[0] == oldest
    assert "Typing :: Typed" in project["classifiers"]


def test_every_licence_of_the_wheel_is_in_its_expression_and_every_text_is_named() -> None:
    project = PROJECTS["cm3leon"]
    texts = {
        path
        for pattern in ("**/licenses/*.txt", "**/assets/LICENSE", "**/ATTRIBUTION.md")
        for path in (ROOT / "plugins" / "cm3plugins").glob(pattern)
    }
    named = {path for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    assert len(texts) > 5
    assert texts <= named
    # MIT-emojilib.txt, Apache-2.0.txt, ...
    kinds = {
        first(r"\A(MIT|ISC|Apache-2\.0|CC-BY-4\.0)", path.name)
        for path in texts
        if path.suffix == ".txt"
    }
    assert set(project["license"].split(" AND ")) == kinds


def test_the_citation_names_the_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == PROJECTS["cm3leon"]["license"].split(" AND ")
    assert set(cited["keywords"]) <= set(PROJECTS["cm3leon"]["keywords"])
    (paper,) = cited["references"]
    assert paper["url"] == PROJECTS["cm3leon"]["urls"]["Paper"]
    assert (paper["authors"][0]["family-names"], len(paper["authors"])) == ("Yu", 27)


# What runs


def test_ci_is_what_ci_run_does() -> None:
    jobs = workflow("ci")["jobs"]
    assert list(jobs) == ["ci"]
    job = jobs["ci"]
    assert "continue-on-error" not in str(job)
    assert "if" not in job
    # one step, which is .ci/run; the other fetches the sources
    assert [step.get("uses", "run").split("@")[0] for step in job["steps"]] == [
        "actions/checkout",
        "run",
    ]
    assert steps(job).strip().startswith(".ci/run ${{")
    modes = set(first(r"^    (within.*)\) ;;$", RUN).split(" | "))
    listed = job["strategy"]["matrix"]["include"]
    assert {one["versions"] for one in listed} | {"full"} == modes
    assert "'full' || matrix.versions" in steps(job)
    assert {"push", "pull_request", "schedule", "workflow_call"} <= set(workflow("ci")["on"])
    # the oldest and the newest Python that are stated; Debian, where .ci/run finds by apt what tests use
    stated = [
        one.rpartition(" ")[2] for one in PROJECTS["cm3leon"]["classifiers"] if ":: 3." in one
    ]
    within = [one["python"] for one in listed if one["versions"] == "within"]
    assert within == [stated[0], stated[-1]]
    assert {one["versions"]: one["python"] for one in listed}["lowest"] == stated[0]
    assert job["container"] == "python:${{ matrix.python }}-trixie"


def test_a_release_is_tested_built_tried_and_attested_before_it_is_published() -> None:
    read = workflow("release")
    assert read["on"]["push"] == {"tags": ["v*"]}
    jobs = read["jobs"]
    assert jobs["ci"] == {"uses": "./.github/workflows/ci.yml"}
    build = steps(jobs["build"])
    assert '.ci/release.py check "$GITHUB_REF_NAME"' in build
    assert ".ci/package out" in build
    assert build.index("release.py check") < build.index("release.py address")
    assert build.index("release.py address") < build.index(".ci/package")
    needed = {name: job.get("needs", []) for name, job in jobs.items()}
    assert needed == {
        "ci": [],
        "build": [],
        "attest": ["ci", "build"],
        "pypi": ["attest"],
        "github": ["pypi"],
    }
    tagged = [name for name, job in jobs.items() if job.get("if") == "github.ref_type == 'tag'"]
    assert tagged == ["attest", "pypi", "github"], "run by hand, it publishes nothing"
    assert read["permissions"] == {"contents": "read"}
    assert jobs["pypi"]["permissions"] == {"id-token": "write"}
    assert "password" not in str(jobs["pypi"])
    listed = jobs["pypi"]["strategy"]["matrix"]["distribution"]
    assert listed[0] == "cm3leon"
    assert sorted(listed) == sorted(PROJECTS)


def test_ci_run_builds_and_tries_what_a_release_does() -> None:
    assert "\nbeside packages .ci/package " in RUN
    package = (ROOT / ".ci" / "package").read_text(encoding="utf-8")
    for part in ("twine", "cyclonedx-py", ".ci/readme.py README.md", "-m build"):
        assert part in package
    runs = readme.examples((ROOT / "README.md").read_text(encoding="utf-8"))
    commands = {one.split()[1] for one in runs if one.startswith("cm3 ")}
    assert {"generate", "edit", "infill", "recipe"} <= commands
    assert commands & set(readme.LONG) == set()
    assert any("cm3core.load()" in one for one in runs)


def test_what_runs_before_commits_is_quick_and_has_the_static_checks_of_ci_run() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (hook,) = [hook for repo in hooks["repos"] for hook in repo["hooks"]]
    assert hook["entry"] == ".ci/quick HEAD"
    assert hook["always_run"]
    quick = (ROOT / ".ci" / "quick").read_text(encoding="utf-8")
    for command in ("ruff format --check .", "ruff check .", "lint-imports", "mypy"):
        assert re.search(rf"^(beside types )?{re.escape(command)}", RUN, re.MULTILINE), command
        assert re.search(rf"^{re.escape(command)}", quick, re.MULTILINE), command
    assert "\n.ci/quick\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


# The script


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the script reads, elsewhere."""
    for name in ("cm3core/_version.py", "CITATION.cff", "CHANGELOG.md", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for path in release.projects(ROOT):
        folder = tmp_path / path.parent.relative_to(ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        shutil.copy(path.parent / "README.md", folder)
    return tmp_path


def test_what_is_out_of_step_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["check"], copy) == 0
    version = release.found(copy, release.VERSION)
    for name, old, new in (
        ("CITATION.cff", f"version: {version}", "version: 9.9.9"),
        ("plugins/cm3-lab/pyproject.toml", f'version = "{version}"', 'version = "9.9.9"'),
        ("plugins/cm3-postgres/pyproject.toml", f"cm3leon=={version}", "cm3leon>=0"),
    ):
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
    with (copy / "CHANGELOG.md").open("a") as file:
        file.write("- more\n" * 200)
    capsys.readouterr()
    assert release.main(["check", "v9.9.9"], copy) == 1
    *lines, tag = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == [
        "CITATION.cff",
        "plugins/cm3-lab/pyproject.toml",
        "plugins/cm3-postgres/pyproject.toml",
        "CHANGELOG.md",
    ]
    assert tag == f"the tag is v9.9.9, the version {version}"


def test_a_version_is_prepared_by_hand_and_by_the_script(copy: Path) -> None:
    log = copy / "CHANGELOG.md"
    before = release.parts(copy)
    log.write_text(
        log.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- One.\n", 1)
    )
    newest = release.found(copy, release.VERSION)
    assert any("is not empty" in line for line in release.problems(copy, f"v{newest}"))
    release.prepare(copy, "7.8.9rc1", "2031-02-03")
    assert list(release.problems(copy, "v7.8.9rc1")) == []
    (_, _, nothing), (version, date, text), *older = release.parts(copy)
    assert (nothing, version, date) == ("", "7.8.9rc1", "2031-02-03")
    assert text.startswith("### Fixed\n\n- One.")
    assert older == before[1:]
    assert "date-released: 2031-02-03\n" in (copy / "CITATION.cff").read_text()
    assert '"cm3leon[plots]==7.8.9rc1"' in (copy / "plugins/cm3-lab/pyproject.toml").read_text()
    # prepared once more, on another day: the same part, with what came in between
    once = log.read_text()
    log.write_text(once.replace("## [Unreleased]\n", "## [Unreleased]\n\n- Two.\n", 1))
    release.prepare(copy, "7.8.9rc1", "2031-02-04")
    assert [one[:2] for one in release.parts(copy)][1] == ("7.8.9rc1", "2031-02-04")
    assert release.parts(copy)[1][2] == f"- Two.\n\n{text}"
    with pytest.raises(SystemExit, match="is not a version such as"):
        release.prepare(copy, "next", "2031-02-04")


def test_addresses_are_those_of_the_repository(copy: Path) -> None:
    url = "https://host.example/me/it"
    assert release.main(["address", url + "/", "v1"], copy) == 0
    for path in release.projects(copy):
        urls = tomllib.loads(path.read_text())["project"]["urls"]
        assert urls["Source"] == url
        assert urls["Changelog"] == f"{url}/blob/v1/CHANGELOG.md"
        assert urls["Paper"].endswith("2309.02591")
    shown = (copy / "README.md").read_text()
    assert re.search(rf"!\[[^\]]*\]\({re.escape(url)}/raw/v1/docs/images/", shown)
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(targets) > 20
    assert [one for one in targets if not one.startswith(("https://", "#"))] == []
    inside = [one.split("/v1/")[1].split("#")[0] for one in targets if one.startswith(url)]
    assert [one for one in inside if not (ROOT / one).exists()] == []


def test_links_of_a_page_in_a_folder() -> None:
    folder = PurePosixPath("plugins/cm3-lab")
    page = "[a](../../docs/a.md#b) [c](#d) [e](https://f) ![g](h.png)"
    assert release.absolute(page, folder, "U", "t") == (
        "[a](U/blob/t/docs/a.md#b) [c](#d) [e](https://f) ![g](U/raw/t/plugins/cm3-lab/h.png)"
    )


def test_examples_of_a_page() -> None:
    page = (
        "```bash\npip install x\ncm3 quickstart x   # long\ncm3 generate a -o b && cm3 serve\n```\n"
        "```python\nx = 1\n```\n```text\ncm3 ask\n```\n"
        "<!-- fails -->\n```bash\ncm3 recipe check a\n```\n"
        "<!-- file: mine.py -->\n```python\ny = 2\n```\n<!-- not run: slow -->\n```bash\ncm3 edit a\n```\n"
    )
    assert readme.examples(page) == ["cm3 generate a -o b", "x = 1\n", "cm3 edit a"]
    assert readme.files(page) == {"mine.py": "y = 2\n"}
