"""The files of an icon corpus, from its drawings: the same drawings give the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cm3plugins.datasets.icons.read import Drawing
from cm3plugins.datasets.vector.files import compress, data_hash
from cm3plugins.datasets.vector.render import renderer_version


def corpus_files(
    drawings: Sequence[Drawing],
    splits: Sequence[str],
    set_names: Iterable[str],
    records: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the data files and the manifest: name -> bytes; the manifest is the last.

    Args:
        drawings: in the corpus' order.
        splits: of each.
        set_names: sets whose drawings are written; the emoji of the bundled corpus have files of their own.
        records: what the manifest holds besides.
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
