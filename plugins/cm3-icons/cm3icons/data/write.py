"""The files of an icon corpus, from its drawings: the same drawings give the same bytes. The attribution shipped
with them has one line for each set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cm3icons.data.read import Drawing
from cm3icons.data.sets import IconSet, all_sets
from cm3plugins.datasets.vector.files import compress, data_hash
from cm3plugins.svg import renderer_version

_HEAD = """\
# Attribution of the icon corpus

The drawings and names in this folder come from these npm packages (`@iconify-json/SET`). Licences are those that
the packages state; their texts are in `licenses/`. Checksums of the packages are in `manifest.json`. The emoji that
are part of the corpus have an attribution of their own, in the emoji corpus' folder.

"""

_USER_HEAD = """\
# Attribution of this icon corpus

The drawings and names in this folder come from these npm packages (`@iconify-json/SET`), and are under the licences
that the packages state.

"""

_TABLE = """\
| set | version | drawings | author | source | licence |
| --- | --- | --- | --- | --- | --- |
"""

_CHANGES = """
## Changes made

- Chosen: one size of a drawing, no logos of companies and products, no skin tones, nothing that the set has withdrawn;
  of drawings that can't be told apart at 64 x 64 pixels, the first stays.
- Each drawing's elements are unchanged but for `currentColor`, which became black; an `<svg>` element with a square,
  centred view box was put around them.
- Names are split into words and styles; aliases and categories are tags, in lower case.
- Pictures are drawn from these files at the size that a recipe asks for, on a white ground.
"""

_REBUILD = """
Rebuild and compare: `python -m cm3icons.data.build --check`.
"""


def attribution(num_drawings: Mapping[str, int]) -> str:
    """Return the attribution of the bundled corpus, in Markdown.

    Args:
        num_drawings: set -> number of drawings in the corpus.
    """
    return _HEAD + _rows(all_sets().values(), num_drawings) + _CHANGES + _REBUILD


def attribution_of(sets: Iterable[IconSet], num_drawings: Mapping[str, int]) -> str:
    """Return the attribution of a user's corpus, in Markdown."""
    return _USER_HEAD + _rows(sets, num_drawings) + _CHANGES


def _rows(sets: Iterable[IconSet], num_drawings: Mapping[str, int]) -> str:
    rows = [
        f"| `{s.name}` | {s.version} | {num_drawings[s.name]:,} | {s.author} | {s.url} | {s.licence} |\n"
        for s in sets
    ]
    return _TABLE + "".join(rows)


def corpus_files(
    drawings: Sequence[Drawing],
    splits: Sequence[str],
    set_names: Iterable[str],
    records: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the data files and the manifest: name -> bytes; the manifest comes last.

    Args:
        drawings: in corpus order.
        splits: split of each drawing.
        set_names: sets whose drawings are written; the emoji of the bundled corpus have their own files.
        records: further entries of the manifest.
    """
    rows = [
        {
            "id": drawing.id,
            "words": " ".join(drawing.name.words),
            "style": " ".join(drawing.name.style),
            "tags": list(drawing.tags),
            "split": split,
        }
        for drawing, split in zip(drawings, splits, strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files = {"entries.jsonl.xz": compress(lines)}
    for name in set_names:
        svgs = [
            json.dumps(d.svg, ensure_ascii=False) + "\n" for d in drawings if d.set_name == name
        ]
        files[f"svg-{name}.jsonl.xz"] = compress("".join(svgs))
    manifest = {
        "data_sha256": data_hash(files),
        "num_entries": len(rows),
        "num_of_split": dict(sorted(Counter(splits).items())),
        "deduplicated_with": renderer_version(),
        **records,
        "files": {name: len(data) for name, data in files.items()},
    }
    return files | {"manifest.json": (json.dumps(manifest, indent=1) + "\n").encode()}
