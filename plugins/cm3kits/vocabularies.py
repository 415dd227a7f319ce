"""Small tables of ids for tests, whose parts may have any order: no component may rely on one."""

from __future__ import annotations

from collections.abc import Sequence

from cm3core.vocab import Vocabulary

#: Parts of `make_vocabulary`'s tables.
PARTS = ("special", "text", "image", "sentinels", "unused")
_SPECIAL = ("pad", "eos", "break", "eoss")


def make_vocabulary(
    num_text: int,
    num_image: int,
    num_sentinels: int,
    *,
    num_unused: int = 0,
    order: Sequence[str] = ("image", "special", "text", "sentinels", "unused"),
) -> Vocabulary:
    """A vocabulary with sentinels.

    Args:
        num_text, num_image, num_sentinels: ids of each part.
        num_unused: ids that mean nothing.
        order: of `PARTS` among the ids.

    >>> table = make_vocabulary(3, 2, 1)
    >>> [table.name(token) for token in (0, 2, 6, 9, 10)]
    ['image:0', '<pad>', 'text:0', '<sentinel:0>', '<unused:10>']
    """
    sizes = {
        "special": len(_SPECIAL),
        "text": num_text,
        "image": num_image,
        "sentinels": num_sentinels,
        "unused": num_unused,
    }
    ranges, start = {}, 0
    for part in order:
        ranges[part] = range(start, start + sizes[part])
        start += sizes[part]
    return Vocabulary(
        start,
        (ranges["text"],),
        ranges["image"],
        dict(zip(_SPECIAL, ranges["special"], strict=True)),
        first_text=ranges["text"].start,
        sentinels=ranges["sentinels"],
    )
