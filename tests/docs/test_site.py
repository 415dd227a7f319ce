"""What makes and checks the site (mkdocs.yml): links for both GitHub and the site, generated pages,
the check of the built pages.

The build itself is a step of .ci/run (`mkdocs build --strict`, then docs/_check_site.py)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import yaml

from cm3core.recipe import list_recipes

ROOT = Path(__file__).parents[2]
CONFIG = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE, CHECK = load("_site"), load("_check_site")


def pages_of(nav: object) -> list[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    assert isinstance(nav, (list, dict))
    return [
        page for item in (nav if isinstance(nav, list) else nav.values()) for page in pages_of(item)
    ]


def test_every_page_has_a_place_in_the_navigation() -> None:
    shown = pages_of(yaml.safe_load(CONFIG)["nav"])
    assert len(shown) == len(set(shown))
    ours = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(set(ours) - set(shown)) == []
    made = {"shipped-recipes.md", SITE.API}
    assert [
        page for page in shown if page not in made and not (ROOT / SITE.origin(page)).is_file()
    ] == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    theme = yaml.safe_load(CONFIG)["theme"]
    assert theme["font"] is False


@pytest.mark.parametrize(
    ("uri", "text", "shown"),
    [
        (
            "kernels.md",
            "[a](../kernels/bench/results/README.md#x)",
            "[a](repository/kernels/bench/results/README.md#x)",
        ),
        ("kernels.md", "![a](images/decode-length.png)", "![a](images/decode-length.png)"),
        (
            "plugins/index.md",
            "[a](../data.md), [b](../../CHANGELOG.md)",
            "[a](../data.md), [b](../repository/CHANGELOG.md)",
        ),
        ("repository/CONTRIBUTING.md", "[a](docs/plugins/index.md)", "[a](../plugins/index.md)"),
        (
            "repository/README.md",
            "[a](LICENSE) [b](#figures) [c](https://example.org/x)",
            "[a](LICENSE) [b](#figures) [c](https://example.org/x)",
        ),
        (
            "kernels.md",
            "`[a](../README.md)`\n\n```text\n[a](../README.md)\n```\n",
            "`[a](../README.md)`\n\n```text\n[a](../README.md)\n```\n",
        ),
        (
            "kernels.md",
            "[a](../kernels/bench/results)",
            "[a](repository/kernels/bench/results/README.md)",
        ),
        ("kernels.md", "[a](../kernels/bench)", "[a](repository/kernels/bench/index.md)"),
        ("kernels.md", "[a](../no/such/file.md)", "[a](../no/such/file.md)"),
    ],
)
def test_links_hold_on_the_site(uri: str, text: str, shown: str) -> None:
    assert SITE.with_site_links(text, uri) == shown


def test_a_folder_without_a_readme_is_a_list() -> None:
    page = SITE.folder_page(PurePosixPath("kernels/bench")).splitlines()
    assert page[0] == "# kernels/bench"
    assert "- [results](results/README.md)" in page


def test_addresses_lead_back() -> None:
    for path in ("docs/plugins/index.md", "README.md", "kernels/cm3kernels/attention/README.md"):
        assert SITE.origin(SITE.address(PurePosixPath(path))) == PurePosixPath(path)


def test_every_shipped_recipe_is_shown_with_its_head() -> None:
    page = SITE.recipes_page()
    for recipe in list_recipes():
        part = page.split(f"\n## {recipe.name}\n")[1].split("\n## ")[0]
        head = re.match(
            r"(?:#.*\n)+",
            recipe.path.read_text(encoding="utf-8"),
        )
        assert head is not None
        told = [line.lstrip("# ") for line in head[0].splitlines()[1:] if line.lstrip("# ")]
        assert [line for line in told if line not in part] == []


def test_every_public_module_has_a_page() -> None:
    pages = SITE.api_pages()
    assert f"{SITE.API}/index.md" in pages
    assert "::: cm3core.interfaces.Sampler\n" in pages[f"{SITE.API}/cm3core.interfaces.md"]
    assert len(pages) == 1 + len(SITE.public_modules()) >= 30


def test_every_picture_is_in_the_gallery() -> None:
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert [
        path.name
        for path in (ROOT / "docs" / "images").iterdir()
        if f"(images/{path.name})" not in gallery
    ] == []


GOOD = (
    '<html><link rel="stylesheet" href="a.css"><script src="a.js"></script><h1 id="top">x</h1><a href="#top">up</a>'
    '<a href="other.html#there">x</a><a href="https://example.org">out</a></html>'
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text(GOOD, encoding="utf-8")
    (tmp_path / "other.html").write_text(
        '<p id="there">x</p><a href=".">home</a>', encoding="utf-8"
    )
    for name in ("a.css", "a.js"):
        (tmp_path / name).write_text("", encoding="utf-8")
    return tmp_path


def test_a_good_site_passes(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CHECK.main(site) == 0
    assert (
        "2 pages, all links lead somewhere, nothing is loaded from elsewhere"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("#there", "#here", "index.html: other.html#here leads to no anchor"),
        ('#top"', '#bottom"', "index.html: #bottom leads to no anchor"),
        ("other.html", "gone.html", "index.html: gone.html#there leads to no file"),
        (
            '"a.js"',
            '"https://cdn.example.org/a.js"',
            "index.html: loads https://cdn.example.org/a.js from elsewhere",
        ),
        (
            '"a.css"',
            '"//fonts.example.org/a.css"',
            "index.html: loads //fonts.example.org/a.css from elsewhere",
        ),
        ('"a.js"', '"b.js"', "index.html: b.js leads to no file"),
    ],
)
def test_what_is_wrong_is_told(
    site: Path, old: str, new: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in GOOD
    (site / "index.html").write_text(GOOD.replace(old, new), encoding="utf-8")
    assert CHECK.main(site) == 1
    assert capsys.readouterr().out == f"{problem}\n"


def test_a_style_that_loads_is_told(site: Path) -> None:
    (site / "a.css").write_text(
        "@font-face { src: url(https://fonts.example.org/x.woff2) }", encoding="utf-8"
    )
    assert list(CHECK.problems(site)) == ["a.css: has url(http, which loads from elsewhere"]


def test_an_empty_site_is_no_site(tmp_path: Path) -> None:
    assert list(CHECK.problems(tmp_path)) == [f"{tmp_path}: there are no pages"]
