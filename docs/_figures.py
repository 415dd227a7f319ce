"""The pages' tables of measured figures, made from what is stored. `python docs/_generate.py` writes them.

Stored are the cards beside the weights (`cm3 eval card` wrote them from evaluations); docs/figures: the
what the scripts of this folder measure, and what the experiments of commit `45423e62` measured; and the
benchmarks of kernels/bench/results, whose README names their commands.

A sentence or a table that is written by hand names where its figures are stored, in a comment above it:

    <!-- figures: sheets.json; icons-drawn.median = 0.97; icons-drawn.copies / icons-drawn.num = 96% -->
    <!-- figures: icons64-tuned/CARD.md; Captions > unseen & told > name = 60% -->

`tests/docs/test_figures.py` compares these with what is stored, and with the paragraph below the comment.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
BENCHMARKS = DOCS.parent / "kernels/bench/results"
MODELS = [
    DOCS.parent / folder
    for folder in ("plugins/cm3plugins/assets/models", "plugins/cm3-icons/cm3icons/models")
]
MARKER = re.compile(r"<!-- figures: (.*?) -->\n", re.DOTALL)
SPLITS = ("comp", "compose", "unseen", "train")
#: Tables under one heading: rows of cells by the name of their column.
Rows = list[dict[str, str]]


# ---- what is stored


@cache
def stored(source: str) -> Any:
    """A file of docs/figures, or of the benchmarks; the tables of a card, by heading."""
    if source.endswith(".json"):
        folder = FIGURES if (FIGURES / source).is_file() else BENCHMARKS
        return json.loads((folder / source).read_text(encoding="utf-8"))
    tables: dict[str, Rows] = {}
    heading, columns = "", []
    card = next(folder / source for folder in MODELS if (folder / source).is_file())
    for line in card.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading, columns = line.lstrip("# "), []
        elif line.startswith("|"):
            cells = [html.unescape(cell.strip().strip("*")) for cell in line[1:-1].split(" |")]
            if not columns:
                columns = cells
            elif set("".join(cells)) - set("- "):
                row = dict(zip(columns, cells, strict=True))
                tables.setdefault(heading, []).append(row)
        else:
            columns = []
    return tables


def value_of(source: str, key: str) -> float:
    """A stored figure: `a.b.0` of a JSON file, a quotient of two, 1 less one; or `HEADING > CELL & CELL > COLUMN` of a
    card, `> NUMBER` behind it: which number of the cell."""
    if key.startswith("1 - "):
        return 1 - value_of(source, key[4:])
    if " / " in key and source.endswith(".json"):
        one, other = (value_of(source, part) for part in key.split(" / "))
        return one / other
    found = stored(source)
    if source.endswith(".json"):
        for part in key.split("."):
            found = found[int(part) if isinstance(found, list) else part]
        return float(found)
    heading, cells, column, *number = key.split(" > ")
    [row] = [row for row in found[heading] if set(cells.split(" & ")) <= set(row.values())]
    return float(re.findall(r"[\d.]+", row[column])[int(number[0]) - 1 if number else 0])


def shown(source: str, key: str, like: str) -> str:
    """A stored figure, written as another is: percent, with as many decimals, thousands by comma."""
    value = value_of(source, key)
    number = like.rstrip("%")
    decimals = len(number.partition(".")[2])
    return f"{value * 100:.{decimals}f}%" if like.endswith("%") else f"{value:,.{decimals}f}"


def markers(text: str) -> list[tuple[str, str, str, str]]:
    """The figures that comments of a page name: (source, key, figure, what stands below)."""
    found = []
    for comment in MARKER.finditer(text):
        below = MARKER.sub("", text[comment.end() :]).lstrip().split("\n\n")[0]
        source, *figures = (part.strip() for part in " ".join(comment[1].split()).split(";"))
        for figure in figures:
            key, like = figure.rsplit(" = ", 1)
            found.append((source, key, like, below))
    return found


# ---- tables


def _of_icons() -> list[str]:
    """Nats and R@k of icons, from the card of the tuned model."""
    card = "icons64-tuned/CARD.md"
    nats = [
        ("loss, nothing prepended", "nothing"),
        ("another version", "another version"),
        ("something else", "something else"),
    ]
    drawn = [
        ("R@1 / R@5, nothing prepended", "drawn, nothing prepended"),
        ("another version", "drawn, another version prepended"),
        ("copy of it", "copies of the other version"),
    ]
    lines = [
        f"| split | {' | '.join(title for title, _ in nats + drawn)} |",
        "| --- |" + " --- |" * len(nats + drawn),
    ]
    for split in SPLITS:
        [row] = [
            one
            for one in stored(card)["How probable the true pictures are"]
            if one["split"] == split
        ]
        cells = [row[column].split(" ")[0] for _, column in nats]
        pictures = {
            one["pictures"]: one["R@1 / R@5, pixels"]
            for one in stored(card)["What it draws"]
            if one["split"] == split
        }
        cells += [pictures[name] for _, name in drawn]
        lines.append(f"| `{split}` | {' | '.join(cells)} |")
    return lines


_RULE = "a rule, by the texts that are retrieved for the parts of the picture"
_WHITE = ("a white picture", "the model, shown a white picture")
_FREQUENT = (
    "the most frequent answer of the kind",
    "the most frequent answer of the kind in training",
)
#: Task, figure, heading and column of the card, whose figure it is, and what stands beside it.
_TASKS: list[tuple[str, str, str, str, str, list[tuple[str, str]]]] = [
    (
        "edit",
        "R@5 of the target",
        "Edits",
        "R@5",
        "drawn",
        [("a copy of what was given", "copies of what was given")],
    ),
    (
        "",
        "the finish asked for",
        "Edits",
        "finish",
        "drawn",
        [("real targets", "the real pictures")],
    ),
    (
        "after edges",
        "F1 of the edges",
        "Drawing after edges",
        "edge F1",
        "drawn",
        [("drawn after the caption alone",) * 2],
    ),
    (
        "at boxes",
        "IoU of the ink's box",
        "Drawing at boxes (a picture of them)",
        "IoU",
        "drawn",
        [("another scene's", "those of another record")],
    ),
    (
        "",
        "R@5 of the icon in its box",
        "Drawing at boxes (a picture of them)",
        "R@5",
        "drawn",
        [("another scene's", "those of another record")],
    ),
    (
        "find",
        "IoU above 0.5",
        "Finding",
        "IoU above 0.5",
        "told",
        [("another icon's box", "those of another record"), ("the rule", _RULE)],
    ),
    ("answer", "right", "Answers", "all", "told", [_FREQUENT]),
    ("", '"What is it?"', "Answers", "what", "told", [_WHITE]),
    ("", '"How many things are there?"', "Answers", "how many", "told", [("the rule", _RULE)]),
    ("", '"Is there a bell?"', "Answers", "is there", "told", [("the rule", _RULE)]),
    ("", '"Where is the bell?"', "Answers", "where", "told", [("the rule", _RULE)]),
    (
        "caption",
        "the exact name",
        "Captions",
        "name",
        "told",
        [
            (
                "the retrieved picture's caption",
                "the caption of the picture that is retrieved first",
            )
        ],
    ),
    ("", "the exact style", "Captions", "style", "told", [_WHITE]),
    (
        "enlarge 32 px to 64",
        "PSNR, dB",
        "Enlarging pictures of half the side",
        "PSNR",
        "drawn",
        [
            ("Lanczos", "the small pictures, enlarged by Lanczos: what is given"),
            (
                "`edsr`, reduced",
                "the small pictures, enlarged by EDSR (`cm3 upscale`) and reduced to the size",
            ),
        ],
    ),
]


def _tasks() -> list[str]:
    """The figures of tasks, from the card of the tuned model."""

    def cells(heading: str, label: str, column: str) -> list[str]:
        found = []
        for split in ("comp", "unseen"):
            [row] = [
                row
                for row in stored("icons64-tuned/CARD.md")[heading]
                if row["split"] == split and row[""] == label
            ]
            value = row[column]
            found.append(f"{float(value):.1f}" if column == "PSNR" else value)
        return found

    lines = [
        "| task | figure | `comp` | `unseen` | for comparison: `comp`, `unseen` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, figure, heading, column, label, others in _TASKS:
        beside = "; ".join(
            f"{title}: {', '.join(cells(heading, other, column))}" for title, other in others
        )
        own = " | ".join(cells(heading, label, column))
        lines.append(f"| {task} | {figure} | {own} | {beside} |")
    return lines


def _icon_codes() -> list[str]:
    """What the codes of image tokenizers keep of grey icons."""
    figures = stored("icon-codes.json")
    names = {
        "icons64": ("64", "recipe `icons`"),
        "icons64-ink": ("256", "recipe `icons-ink`"),
        "svg": ("105 in the median", "recipe `icons-svg`"),
    }
    rows = (
        (
            f"`{name}` ({recipe})",
            codes,
            f"{own['encoded'] / own['icons']:.0%}",
            f"{own['median']:.1f} dB",
            f"{own['tenth']:.1f} dB",
            f"{own['changed']:.0%}",
            f"{own['coloured']:.0%}",
        )
        for name, (codes, recipe) in names.items()
        for own in (figures[name],)
    )
    columns = (
        "codes | per picture | icons encoded | PSNR, median | PSNR, lowest tenth | places changed "
        "| icons coloured"
    )
    return _table(columns, rows)


def _colour_codes() -> list[str]:
    """What codes of coloured pictures keep, and image files of as many bytes."""

    def scores(own: dict[str, float]) -> list[str]:
        return [f"{own['psnr']:.1f} dB", f"{own['ssim']:.3f}", f"{own['features']:.3f}"]

    rows: list[Sequence[object]] = []
    for name, own in stored("colour-codes.json").items():
        coded, plain = own["bytes"]["coded"], own["bytes"]["plain"]
        rows.append(
            [
                f"{name}, {own['pictures']:,}",
                "codes",
                f"{coded:.0f} ({plain:.0f})",
                *scores(own["codes"]),
            ]
        )
        for kind in ("coded", "plain"):
            for form in ("WebP", "JPEG"):
                if (files := own.get(f"{form} {kind}")) is not None:
                    most = own["bytes"][kind]
                    rows.append(
                        ["", f"{form}, at most {most:.0f}", f"{files['bytes']:.0f}", *scores(files)]
                    )
    return _table("collection, trained on | | bytes | PSNR | SSIM | distance of features", rows)


def _tuned() -> list[str]:
    """Ways of tuning, and training from nothing, on coloured pictures: means and standard deviations over seeds."""
    titles = {"full": "`full`", "lora": "`lora`", "head": "`head`", "nothing": "from nothing"}
    shown = {"blank": 0, "copies": 0, "nearness": 2, "r5": 0}

    def cell(runs: list[dict[str, Any]], score: str, digits: int) -> str:
        values = [run[score] for run in runs]
        return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"

    rows: list[Sequence[object]] = []
    for ground, arms in stored("tuned.json")["grounds"].items():
        for arm, runs in arms.items():
            row = [ground, titles[arm], f"{mean(run['steps'] for run in runs):.0f}"]
            row += [cell(runs, "nats", 2), *(cell(runs, one, shown[one]) for one in shown)]
            rows.append(row)
        beside = next(iter(arms.values()))[0]["beside"]
        for name in ("real", "nearest caption copied"):
            scores = [f"{beside[one][name]:.{digits}f}" for one, digits in shown.items()]
            rows.append([ground, name, "", "", *scores])
    columns = "collection | | steps | nats a code | blank | copies | nearness | R@5"
    return _table(columns, rows)


def _sheets(*names: str) -> list[str]:
    """Nearness of the pictures of sheets to the prepended documents."""
    lines = ["| picture | drawn | median nearness | nearly copies |", "| --- | --- | --- | --- |"]
    for name in names:
        own = stored("sheets.json")[name]
        lines.append(f"| `{name}.png` | {own['num']} | {own['median']:.2f} | {own['copies']} |")
    return lines


def _table(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """A table with these columns, which `|` separates."""
    return [
        f"| {columns} |",
        "| --- |" + " --- |" * columns.count("|"),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def _gain() -> list[str]:
    """The gain of retrieved documents, mean over seeds, with the memory of all icons."""
    arms = {
        "no documents": ("none", None),
        "`bm25`, one document": ("bm25-1", "bm25/1"),
        "`bm25`, two": ("bm25-2", "bm25/2"),
        "`dense`, one": ("dense-1", "dense/1"),
        "`random`, one": ("random-1", "random/1"),
    }
    runs = stored("retrieval-gain.json")["runs"]
    rows = []
    for title, (arm, documents) in arms.items():
        own, cells = [run for run in runs if run["arm"] == arm], [title]
        for split in ("comp", "unseen"):
            key = f"{split}/all/{documents}" if documents else split
            cells.append(f"{mean(run['losses'][key] for run in own):.2f}")
            drawn, copied = (
                [run["drawn"][split][name] for run in own] for name in ("r5", "copy_r5")
            )
            cells.append(f"{mean(drawn):.2f}" + (f" ({mean(copied):.2f})" if documents else ""))
        rows.append(cells)
    return _table(
        "trained and prompted with | `comp`: loss | R@5 (a copy) | `unseen`: loss | R@5 (a copy)",
        rows,
    )


def _indexes() -> list[str]:
    """Recall and speed of the indexes of a bank of a million documents."""
    rows = []
    for own in stored("retrieval-1m-1thread.json")["results"]:
        if own["part"] == "index":
            asked = list(own["queries"].values())
            size, seconds = own["file_bytes"], own["build_s"]
            rows.append(
                (
                    f"`{own['index']}`",
                    " / ".join(f"{one['recall']:.3f}" for one in asked),
                    " / ".join(f"{one['retrieve_ms']:.1f}" for one in asked),
                    f"{own['batches'][-1]['retriever_ms']:.1f}",
                    f"{seconds:.0f}" if size else "–",
                    f"{size / 1e6:.0f}" if size else "–",
                )
            )
    return _table(
        "index | recall@4, text / image | ms a query | of 256 at once | seconds to build | file, MB",
        rows,
    )


def _torchumm() -> list[str]:
    """Scores that TorchUMM measured of other models, as its README prints them."""
    found = stored("torchumm.json")
    rows = [[cell or "—" for cell in row] for row in found["rows"]]
    return _table(" | ".join(found["columns"]), rows)


def _scorers() -> list[str]:
    """The official scorers whose own code wrote what `cm3 eval import` is tested with."""
    rows = []
    for name, one in stored("scorers.json").items():
        commit = f"https://github.com/{one['repository']}/tree/{one['commit']}"
        files = ", ".join(f"`{Path(path).name}`" for path in one["files"] if path.endswith(".py"))
        pinned = f"[{one['repository']}@{one['commit'][:7]}]({commit}), {one['date']}"
        rows.append((f"`{name}`", pinned, files, one["replaced"], one.get("untried", "")))
    return _table("benchmark | commit | executed | replaced by a stub | not tried", rows)


def _postgres_clients() -> list[str]:
    """Queries a second of a database of 200,000 documents, by threads and connections."""
    rows: dict[tuple[int, int], list[str]] = {}
    for one in stored("retrieval-200k-clients.json")["results"]:
        if one["part"] == "clients":
            rows.setdefault((one["threads"], one["connections"]), []).append(
                f"{one['queries_per_s']:.0f} ({one['ms']:.0f} / {one['ms_p99']:.0f})"
            )
    return _table(
        "threads | connections | queries a second (ms: median / p99) | with answers 5 ms later",
        [(str(threads), str(connections), *own) for (threads, connections), own in rows.items()],
    )


def _postgres() -> list[str]:
    """Recall and speed of a database of a million documents, compared with the local bank."""
    titles = {
        "ivf": "a local bank, `ivf`",
        "pgvector": "`pgvector`",
        "pgvector, one style": "`pgvector`, filtered to one document in 100",
    }
    rows = []
    for own in stored("retrieval-1m-postgres.json")["results"]:
        if own["part"] == "engine":
            asked = list(own["queries"].values())
            rows.append(
                (
                    titles[own["engine"]],
                    " / ".join(f"{one['recall']:.3f}" for one in asked),
                    " / ".join(f"{one['ms']:.0f}" for one in asked),
                    f"{own['batch_ms']:.0f}",
                )
            )
    return _table("searched | recall@4, text / image | ms a query | of 256 at once", rows)


def _embedder() -> list[str]:
    """How often the embedder of icons finds another drawing of the same object, compared with BM25."""
    found = stored("embedder-icons.json")
    titles = {
        "a caption": ("comp: caption", "comp: caption, by bm25"),
        "a caption, a version of the same set": ("comp: caption", "comp: caption, by bm25"),
        "a picture, by its picture vector": ("comp: picture", None),
        "a picture, by its looks": ("comp: picture", None),
    }
    ends = {
        "a caption, a version of the same set": "versions of its set, where there are",
        "a picture, by its looks": "versions among all pictures",
    }
    rows = []
    for title, queries in titles.items():
        keys = [query and f"{query} -> {ends.get(title, 'versions')}" for query in queries]
        cells = [
            f"{found[key]['R@1']:.2f}, {found[key]['R@5']:.2f}" if key else "–" for key in keys
        ]
        rows.append((title, *cells))
    return _table("query | `light_encoder` | `bm25`", rows)


def _speed() -> list[str]:
    """Image tokens per second of a decoder with 100M parameters, also relative to Janus."""
    titles = {
        "engine": "`cm3`, fp32",
        "engine-bf16": "`cm3`, bf16",
        "engine-int8": "`cm3`, int8",
        "janus": "Janus (transformers), fp32",
    }
    found: dict[tuple[str, int, int], float] = {
        (own["provider"], own["parameters"]["batch"], own["parameters"]["tokens"]): own[
            "tokens_per_s"
        ]
        for own in stored("decode-100m.json")["results"]
        if own["part"] == "compare"
    }
    cases = [(1, 256), (8, 256)]
    return _table(
        " | ".join(["", *(f"batch {batch}, {tokens:,} tokens" for batch, tokens in cases)]),
        [
            [
                title,
                *(
                    f"{found[name, *case]:.0f} ({found[name, *case] / found['janus', *case]:.1f})"
                    for case in cases
                ),
            ]
            for name, title in titles.items()
        ],
    )


def _rerankers() -> list[str]:
    """How often the candidate that a reranker chooses is right."""
    titles = {
        "nothing": "the mean candidate",
        "clip": "`clip`, with the bundled embedder",
        "likelihood": "`likelihood`",
        "pmi text": "`pmi`, `direction: text`",
        "pmi image": "`pmi`, `direction: image`",
        "the best": "the best candidate",
    }
    right = stored("rerankers.json")["right"]
    return _table(
        "chosen by | right", [(title, f"{right[name]:.2f}") for name, title in titles.items()]
    )


def _near_pairs() -> list[str]:
    """Nearness of pairs of icons."""
    return _table(
        "two pictures | median nearness | nearly copies",
        [
            (name, f"{own['median']:.2f}", f"{own['copies'] / own['num']:.1%}")
            for name, own in stored("nearness.json").items()
        ],
    )


def _ways() -> list[str]:
    """Losses of tuning methods after the same time."""
    found = stored("tuning-ways.json")
    titles = {
        "draw": "draw",
        "caption": "caption",
        "find": "find an object",
        "answer": "answer",
    }
    losses = {"before": found["before"]} | {one["arm"]: one["losses"] for one in found["runs"]}
    return _table(
        "task | before | `full` | `lora` | `response-only` | `paper-layout`",
        [
            [
                title,
                *(
                    f"{mean(own[f'{split}/{part}'] for split in found['splits']):.1f}"
                    for own in losses.values()
                ),
            ]
            for part, title in titles.items()
        ],
    )


def _floors() -> list[str]:
    """Image tokens a second on one thread with AMX, relative to a plain loop; and how much of the time reading takes."""
    titles = {
        "plain-bf16": "a plain loop, bf16",
        "engine-bf16": "`cm3`, bf16",
        "engine-int8": "`cm3`, int8",
    }
    rows: dict[str, list[str]] = {name: [title] for name, title in titles.items()}
    columns = [""]
    for size in ("25m", "100m"):
        own = [
            one for one in stored(f"decode-{size}-amx.json")["results"] if one["part"] == "compare"
        ]
        for batch in (1, 8):
            columns.append(f"{size.upper()}, batch {batch}")
            found = {one["provider"]: one for one in own if one["parameters"]["batch"] == batch}
            plain = found["plain-bf16"]["tokens_per_s"]
            for name, row in rows.items():
                speed, read = found[name]["tokens_per_s"], found[name]["of_read"]
                row.append(f"{speed:.0f} ({speed / plain:.1f}), {read:.0%}")
    return _table(" | ".join(columns), rows.values())


def _upscalers() -> list[str]:
    """PSNR and SSIM of the upscalers, on downscaled pictures and on the tokenizer's reconstructions."""
    found = stored("upscalers.json")

    def cell(pictures: str, upscaler: str, sort: str, who: str = "upscaler") -> str:
        if upscaler not in found[pictures]:
            return ""
        own = found[pictures][upscaler][sort][who]
        return f"{own['psnr']:.2f} ({own['ssim']:.3f})"

    return _table(
        "pictures | Lanczos | `edsr` | `ink` after `edsr`",
        [
            (
                f"{pictures}, {title}",
                cell(pictures, "edsr", sort, "lanczos"),
                cell(pictures, "edsr", sort),
                cell(pictures, "ink", sort),
            )
            for pictures in found
            for sort, title in (
                ("shrunk", "downscaled"),
                ("reconstructed", "after the image tokenizer"),
            )
        ],
    )


def _large_model() -> list[str]:
    """Time and memory of a 7B model on a CPU, as reported by examples/large_model/measure.py."""
    rows = []
    for own in stored("large-model.json"):
        theirs = own["run"] == "theirs"
        memory = f"{own['anonymous_gb']:.1f}" + (", and the mapped file" if theirs else "")
        name = "transformers, bf16" if theirs else f"`{own['run']}`"
        rows.append(
            (name, f"{own['ready_s']:.0f} s", memory, f"{own['text']:.2f}", f"{own['picture']:.2f}")
        )
    return _table(" | ready in | memory, GB | text | picture, with guidance", rows)


def _training_memory() -> list[str]:
    """Estimated and measured memory of training."""
    return _table(
        "recipe and overrides (`decoder.` left out) | estimate | measured",
        [
            (own["title"], f"{own['estimate_gb']:.2f}", f"{own['measured_gb']:.2f}")
            for own in stored("training-memory.json")["runs"]
        ],
    )


def _usable() -> list[str]:
    """What real drawings and copies score, as `docs/_usable.py` measured it."""
    shown = (
        "usable",
        "thing",
        "thing_top5",
        "in_hand",
        "copied",
        "thing_in_hand",
        "neighbours",
        "r5",
    )
    lines = [
        "| split | | usable | thing | first five | hand | copy | thing and hand | neighbours | R@5 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, rows in stored("usable.json").items():
        for name, scores in rows.items():
            cells = [f"{scores[one]['value']:.1f} ± {scores[one]['spread']:.1f}" for one in shown]
            lines.append(f"| `{split}` | {name} | {' | '.join(cells)} |")
    return lines


def _settings(split: str, file: str = "settings.json") -> list[str]:
    """Settings of generation, as they were judged."""
    return _judged(stored(file)["runs"], split)


def _verdicts(found: dict[str, list[float]]) -> list[str]:
    """Cells of what icons are judged by: value and standard error."""
    names = ("usable", "thing", "thing_top5", "in_hand", "copied")
    return [f"{found[name][0]:.0f} ± {found[name][1]:.0f}" for name in names]


def _completing(split: str) -> list[str]:
    """What `cm3 complete` draws for sets, as `docs/_completing.py` stored it."""
    found = stored("completing.json")[split]
    shown = ("usable", "any", "thing", "hand", "copy")
    lines = [
        f"| | usable | any of {found['candidates']} usable | thing | hand | copy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = {**found["models"], "*the sets' own drawings*": found["real"]}
    for title, own in rows.items():
        scores = (own["scores"].get(name) for name in shown)
        cells = ["" if one is None else f"{one[0]:.0f} ± {one[1]:.0f}" for one in scores]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _vectors() -> list[str]:
    """What vector and raster models drew of the same held-out icons, as `docs/_vectors.py` stored it."""
    judged = stored("vectors.json")["judged"]
    rows = [(title, "drawn", by_split) for title, by_split in judged.items()]
    rows += [("*real drawings*", "real", next(iter(judged.values())))]
    return _table(
        " | split | usable | thing | first five | hand | copy",
        [
            (title, f"`{split}`", *_verdicts(found[kind]))
            for title, kind, by_split in rows
            for split, found in by_split.items()
        ],
    )


def _scaling(split: str) -> list[str]:
    """Sizes and tokens of training, as they were judged."""
    return _judged(stored("scaling.json")["runs"], split)


#: Arm of a stored comparison of trainings or of settings -> its title.
_ARMS = {
    "1m": "1M parameters",
    "3m": "3M parameters",
    "10m": "10M parameters",
    "1m-quarter": "1M, a quarter of the tokens",
    "3m-quarter": "3M, a quarter of the tokens",
    "10m-quarter": "10M, a quarter of the tokens",
    "documents-0": "no documents",
    "documents-1": "1 document",
    "documents-2": "2 documents",
    "documents-3": "3 documents",
    "recipe": "the recipe's settings",
    "unguided": "no guidance",
    "cfg-1.5": "guidance, scale 1.5",
    "cfg-2": "guidance, scale 2",
    "cfg-3": "guidance, scale 3",
    "cfg-5": "guidance, scale 5",
    "cd-k": "contrastive, CD-K",
    "cfg-of-4": "guidance, best of 4",
    "cfg-3-of-4": "guidance, scale 3, best of 4",
    "cd-k-of-4": "CD-K, best of 4",
    "both-3-of-4": "half guidance of scale 3, half CD-K, best of 4",
}


def _by_arm(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Title of each arm -> its runs, one of each seed."""
    arms = dict.fromkeys(run["arm"] for run in runs)
    return {_ARMS[arm]: [run for run in runs if run["arm"] == arm] for arm in arms}


def _over_seeds(values: Sequence[float], digits: int = 0, error: float = 0.0) -> str:
    """Mean and standard deviation; of one value its own error."""
    spread = stdev(values) if len(values) > 1 else error
    return f"{mean(values):.{digits}f} ± {spread:.{digits}f}"


def _judged(runs: list[dict[str, Any]], split: str) -> list[str]:
    """Percent of icons, by arm, then what they are compared with."""
    names = ("usable", "thing", "thing_top5", "in_hand", "copied")
    rows = []
    for title, own in _by_arm(runs).items():
        scores = [run["judged"][split]["scores"] for run in own]
        cells = [
            _over_seeds([one[name][0] for one in scores], error=scores[0][name][1])
            for name in names
        ]
        rows.append((title, *cells))
    beside = runs[0]["judged"][split]["beside"]
    rows += [
        (f"*{row}*", *_verdicts(beside[row])) for row in ("real", "thing copied", "hand copied")
    ]
    return _table("| usable | thing | first five | hand | copy", rows)


def _scaled_losses() -> list[str]:
    """Losses by size and tokens."""
    splits = ("restyle", "unseen")
    names = [
        f"validation/{split}/image_loss{end}" for end in ("", "_retrieved") for split in splits
    ]
    rows = []
    for title, own in _by_arm(stored("scaling.json")["runs"]).items():
        ends = [run["curve"][-1] for run in own]
        cells = [
            _over_seeds([end[name] for end in ends], 3) if name in ends[0] else "–"
            for name in names
        ]
        minutes = _over_seeds([run["seconds"] / 60 for run in own])
        size, tokens = own[0]["parameters"] / 1e6, own[0]["tokens"] / 1e6
        rows.append((title, f"{size:.1f}M", f"{tokens:.2f}", minutes, *cells))
    titles = " | ".join([*splits, *(f"{split}, documents" for split in splits)])
    return _table(f"trained | parameters | million tokens | minutes | {titles}", rows)


#: Claims of which counts are stored: what is compared, the figure, the split, and the two arms; the second should be better.
_CLAIMS = [
    ("guidance", "settings.json", "unguided", ("cfg-1.5", "cfg-2", "cfg-3", "cfg-5", "cd-k")),
    ("documents", "settings.json", "documents-0", ("documents-1", "cfg-2", "documents-3")),
]


def _counts(source: str, split: str, arm: str) -> tuple[int, int]:
    """How many icons of an arm were usable, and of how many."""
    num = stored(source)["settings"]["num"]
    [run] = [run for run in stored(source)["runs"] if run["arm"] == arm]
    return round(run["judged"][split]["scores"]["usable"][0] * num / 100), num


def _claim_tests() -> list[str]:
    """What stored counts say of McNemar's exact test over the same icons, corrected for the number of rows."""
    from cm3apps.sweep.comparison import LEVEL, exact_p_of_counts, holm

    found = [
        ("guidance.json", "restyle", "cfg-2", "cfg-3"),
        *(
            (source, split, first, other)
            for split in ("restyle", "variant")
            for _, source, first, others in _CLAIMS
            for other in others
        ),
    ]
    tested = []
    for source, split, first, other in found:
        (hits, num), (more, same) = _counts(source, split, first), _counts(source, split, other)
        assert num == same
        tested.append((split, first, other, hits, more, num, exact_p_of_counts(hits, more, num)))
    rows = []
    least, most = (holm([one[-1][end] for one in tested]) for end in (0, 1))
    for (split, first, other, hits, more, num, p), low, high in zip(
        tested, least, most, strict=True
    ):
        # both arms of guidance, too, have two documents
        names = [
            "2 documents" if arm == "cfg-2" and first == "documents-0" else _ARMS[arm]
            for arm in (first, other)
        ]
        shown_as = "better" if more > hits else "worse"
        if high >= LEVEL:
            shown_as = "undecided" if low < LEVEL else "not shown"
        cells = [names[0], names[1], f"{hits} of {num}", f"{more} of {num}"]
        rows.append((f"`{split}`", *cells, _from_to(*p), _from_to(low, high), shown_as))
    return _table(
        " | first | second | first usable | second usable | p | p, Holm | second is", rows
    )


def _from_to(least: float, most: float) -> str:
    """Bounds as in "0.016 to 0.12"; equal ones are one number."""
    ends = dict.fromkeys((f"{least:.2g}", f"{most:.2g}"))
    return " to ".join(ends)


def _swept_guidance() -> list[str]:
    """Paired tests of the stored cases of a sweep: each way of drawing against none, and CD-K against guidance of scale 3."""
    from cm3apps.sweep.comparison import LEVEL, Estimate, holm, paired_p

    cells = {
        label: [100 * int(value) for value in values]
        for label, values in stored("swept-guidance.json")["usable"].items()
    }
    pairs = [("no guidance", other) for other in cells if other != "no guidance"]
    pairs.append(("guidance of scale 3", "CD-K"))
    differences = [
        [b - a for a, b in zip(cells[first], cells[second], strict=True)] for first, second in pairs
    ]
    p_values = [paired_p(one) for one in differences]
    rows = []
    for (first, second), own, p, corrected in zip(
        pairs, differences, p_values, holm(p_values), strict=True
    ):
        difference = Estimate.of(own)
        assert difference.error is not None
        shown_as = (
            ("better" if difference.mean > 0 else "worse") if corrected < LEVEL else "not shown"
        )
        usable = [f"{mean(cells[one]):.0f}" for one in (first, second)]
        change = f"{difference.mean:+.0f} ± {difference.error:.0f}"
        rows.append((first, second, *usable, change, f"{p:.2g}", f"{corrected:.2g}", shown_as))
    return _table(
        "first | second | first usable | second usable | difference | p | p, Holm | second is", rows
    )


def _scene_documents() -> list[str]:
    """How often bm25 finds both things of a prompt, as `docs/_scenes.py` measured it."""
    found = stored("scenes.json")
    own = {raster: found[raster]["retrieval"] for raster in ("fine", "coarse")}
    names = [name for name in own["fine"] if name != "num"]
    return _table(
        f"keys | fine ({own['fine']['num']}) | coarse ({own['coarse']['num']})",
        [(name, *(f"{100 * one[name]:.0f}%" for one in own.values())) for name in names],
    )


def _scene_reader() -> list[str]:
    """What the reader of scenes reads, and what it should not."""
    found = stored("scenes.json")
    rows = {
        "as drawn, `valid`": ("read", "valid"),
        "as drawn, `unseen`": ("read", "unseen"),
        "after the tokenizer, `valid`": ("read_after_codes", "valid"),
        "after the tokenizer, `unseen`": ("read_after_codes", "unseen"),
        **{f"spoiled: {way}": ("spoiled", way) for way in found["fine"]["spoiled"]},
    }
    return _table(
        "pictures | fine, 64 px | coarse, 32 px",
        [
            (title, *(f"{100 * found[raster][key][own]:.1f}%" for raster in ("fine", "coarse")))
            for title, (key, own) in rows.items()
        ],
    )


def _quickstart_icons() -> list[str]:
    """What one quickstart drew of held-out icons, as `docs/_quickstart.py` stored it."""
    return _table(
        " | | usable | thing | first five | hand | copy",
        [
            (f"`{split}`", row, *_verdicts(found))
            for split, rows in stored("quickstart-icons.json")["splits"].items()
            for row, found in rows.items()
        ],
    )


def tables() -> dict[str, dict[str, list[str]]]:
    """The tables of the pages, by name."""
    return {
        "icons.md": {"codes": _icon_codes(), "vectors": _vectors()},
        "icons-model.md": {
            "tuned": _of_icons(),
        },
        "gallery.md": {
            "sheets": _sheets("icons-drawn", "icons-model", "guide-draw"),
        },
        "retrieval.md": {
            "gain": _gain(),
            "embedder": _embedder(),
            "indexes": _indexes(),
            "postgres": _postgres(),
            "postgres-clients": _postgres_clients(),
        },
        "complete.md": {
            "completing": _completing("missing"),
            "completing restyle": _completing("restyle"),
            "completing variant": _completing("variant"),
        },
        "claims.md": {
            "swept guidance": _swept_guidance(),
            "tests": _claim_tests(),
            "scaled losses": _scaled_losses(),
            "scaled restyle": _scaling("restyle"),
            **{
                f"longer {split}": _settings(split, "longer.json")
                for split in ("restyle", "variant", "missing")
            },
            "settings restyle": _settings("restyle"),
            "settings variant": _settings("variant"),
            "guidance restyle": _settings("restyle", "guidance.json"),
        },
        "decoding.md": {
            "rerankers": _rerankers(),
            "best of four restyle": _settings("restyle", "best-of-four.json"),
            "best of four variant": _settings("variant", "best-of-four.json"),
            "nearness of pairs": _near_pairs(),
            "floors": _floors(),
            "speed": _speed(),
            "upscalers": _upscalers(),
        },
        "models.md": {"large model": _large_model()},
        "evaluation.md": {"scorers": _scorers(), "torchumm": _torchumm(), "usable": _usable()},
        "own-pictures.md": {"colour-codes": _colour_codes()},
        "quickstart.md": {"quickstart icons": _quickstart_icons()},
        "scenes.md": {"documents": _scene_documents(), "reader": _scene_reader()},
        "recipes.md": {"training memory": _training_memory()},
        "tuning.md": {"tasks": _tasks(), "tuned": _tuned(), "ways": _ways()},
    }
