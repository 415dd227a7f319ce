"""What a drawing may do: draw itself. The renderer would read files, expand references without end, and crash."""

from __future__ import annotations

import time

import pytest

from cm3core.errors import DataError
from cm3plugins.svg import render_svg

HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ' viewBox="0 0 24 24">'
)
LAUGHS = "".join(f'<g id="a{n}">{f"""<use href="#a{n + 1}"/>""" * 10}</g>' for n in range(20))
ENTITY = f'<!DOCTYPE svg [<!ENTITY a "{"<path/>" * 4000}">]>{HEAD}{"&a;" * 10_000}</svg>'


@pytest.mark.parametrize(
    ("svg", "cause"),
    [
        (f'{HEAD}<image width="9" height="9" xlink:href="/etc/hostname"/></svg>', "holds <image"),
        (
            f'{HEAD}<s-v:image xmlns:s-v="http://www.w3.org/2000/svg" href="x"/></svg>',
            "holds <image",
        ),
        (f"{HEAD}{LAUGHS}</svg>", "has too many nested references"),
        (ENTITY, "has a document type declaration, which is refused"),
        (f"{HEAD}{'<g>' * 50_000}{'</g>' * 50_000}</svg>", "has elements nested deeper than 200"),
        (f"{HEAD}{'<a>' * 50_000}{'</a>' * 50_000}</svg>", "has elements nested deeper than 200"),
        (f"{HEAD}{'<g>' * 150}{'</g>' * 150}</svg>", "is nested too deeply"),
    ],
)
def test_what_does_more_is_refused_before_it_is_drawn(svg: str, cause: str) -> None:
    begin = time.process_time()
    with pytest.raises(DataError) as caught:
        render_svg(svg, 16)
    assert caught.value.cause.startswith(cause)
    assert time.process_time() - begin < 2


def test_what_draws_itself_is_drawn() -> None:
    group = f'<defs><path id="a" d="M0 0h24v24h-24z"/></defs><use href="#a"/>{"<g/>" * 300}'
    assert render_svg(f"{HEAD}{group}</svg>", 4).max() == 0
