"""No caption becomes a tag, a link or a picture of a report; each is shown as it is."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3apps.markdown_text import code, plain

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![](http://tracker.example/a.png)",
    "[here](javascript:alert(1))",
    "<https://tracker.example>",
    "[a]: http://tracker.example",
    "[a][b]",
    "https://tracker.example and www.tracker.example, WWW.tracker.example",
    "someone@example.org",
    "a | b || c",
    "a\n\n# heading\r\n- item\u2028> quote",
    "&lt;b&gt; &#60;b&#62; &amp;",
    "\\<b> \\\\[a](b) \\",
    "`<b>` ``a`` **b** __c__ _d_ *e* ~~f~~ a_b __a_b__ $x$",
    "\x02wzxhzdk:0\x03 \x02klzzwxh:0000\x03",
    "{: onclick=alert(1) } {#id}",
    "- item",
    "12. item",
    "+ item",
    "---",
    "=== x",
    "a\ud800b\x00c",
]
texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="<>[]()!`*_~|\\:&;#\"'=/.w@$ \na1-+{}^", max_size=40),
    st.lists(st.sampled_from(ATTACKS), min_size=1, max_size=3).map("".join),
)


class Page(HTMLParser):
    """The tags of a page and the text of its cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def shown(text: str) -> str:
    """What is left to see of a text on one line."""
    kept = (one for one in " ".join(text.split()) if unicodedata.category(one) not in ("Cc", "Cs"))
    return " ".join("".join(kept).split())


def every_attack(test):
    for attack in ATTACKS:
        test = example(attack)(test)
    return test


TABLE = ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]


def table(text: str) -> str:
    return f"| written | real |\n| --- | --- |\n| {plain(text)} | end |\n"


def check(page: Page, text: str) -> None:
    assert page.tags == TABLE
    first, last = (cell.strip() for cell in page.cells)
    assert (first.split(), last) == (shown(text).split(), "end")


@every_attack
@given(texts)
def test_python_markdown_shows_a_caption_as_it_is(text: str) -> None:
    markdown = pytest.importorskip("markdown")
    check(Page(markdown.markdown(table(text), extensions=["tables", "attr_list"])), text)


@every_attack
@given(texts)
def test_commonmark_shows_a_caption_as_it_is(text: str) -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    check(Page(parser.enable(["table", "strikethrough"]).render(table(text))), text)


@every_attack
@given(texts)
def test_a_caption_alone_on_a_line_is_a_paragraph(text: str) -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    assert Page(parser.render(plain(text))).tags in ([], ["p"])


@every_attack
@given(texts)
def test_no_special_character_is_left(text: str) -> None:
    """Without any Markdown library: what could begin markup is a character reference."""
    line = plain(text)
    line.encode("utf-8")
    assert not re.search(r"[<>\[\]()!`*|\\:@$~\n\r]|&(?!#\d+;)|www\.", line, re.IGNORECASE)


def test_ordinary_captions_stay_readable() -> None:
    for text in ("red apple, noto style", "validation/comp/image_loss", "a half-moon; 3.5 cm."):
        assert plain(text) == text


@pytest.mark.parametrize("text", ["cm3 quickstart -o x", "a `b` c", "``", "<b>`", "a\nb"])
def test_code_shows_its_text(text: str) -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    html = parser.render(code(text))
    assert re.findall("<[a-z]+", html) == ["<p", "<code"]
    assert code("cm3 quickstart") == "`cm3 quickstart`"
