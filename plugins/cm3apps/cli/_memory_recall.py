"""`cm3 memory recall`: recall of an approximate retriever against exact search, and its latency.

Text and image queries are measured separately, because an index over vectors of whole documents may
have good recall for pictures but not for texts, which are farther away.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cm3apps.cli import add_device, add_overrides, add_trust, registry_of, whole_number
from cm3core.config.schema import check_config
from cm3core.errors import CM3Error, DataError
from cm3core.files import user_path

if TYPE_CHECKING:
    from pathlib import Path

    from cm3core.document import Codes, Document, Image
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.retriever import Retrieved, Retriever
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

LINE = "measure an index's recall against exact search, and its latency"
DESCRIPTION = (
    "Sends the same text and image queries to the recipe's retriever and to its exact form, and "
    "measures recall.\n"
    "Queries are documents of the memory, each excluded from its own results, or of other data. "
    "Exit code 1: poor."
)
EXAMPLE = """examples:
  cm3 memory recall my/bank
  cm3 memory recall my/bank retriever.index=ivf retriever.nprobe=32 --queries 500
  cm3 memory recall quickstart --split unseen"""
PLACE = "cm3 memory recall"
#: The threshold, applied at the given `k` nearest to 4, because CM3leon prepends up to 3 documents to a
#: query.
GOOD_RECALL, GATE_K = 0.95, 4
#: Default values of k.
DEFAULT_K = (1, 4, 10)
#: Scores this close count as equal, so that recall does not depend on which of several equal documents is
#: found.
TIE = 1e-6
#: Queries that are timed one at a time.
NUM_SINGLE = 100


@dataclass(frozen=True)
class Queries:
    """Queries of one modality: documents, and the ids and content keys that each must not retrieve."""

    modality: str
    documents: list[Document]
    exclude: list[Collection[str]]


@dataclass(frozen=True)
class Figures:
    """Measurements for the queries of one modality.

    Args:
        modality: "text" or "image".
        num_queries: the number of queries.
        recall: k -> share of the exact retriever's best k that the retriever has among its best k.
        median_ms, p90_ms: of a single query, embedding included.
        embedding_ms: median of embedding it.
        batch_ms: per query in one batch of `num_queries`, embedding included.
        exact_ms: the same for the exact retriever.
    """

    modality: str
    num_queries: int
    recall: dict[int, float]
    median_ms: float
    p90_ms: float
    embedding_ms: float
    batch_ms: float
    exact_ms: float


def configure(actions: Any) -> None:
    """Add the action `recall` to the subparsers of `cm3 memory`."""
    parser: ArgumentParser = actions.add_parser(
        "recall",
        help=LINE,
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target", metavar="FOLDER|RECIPE", help="a memory bank, or a recipe with a retriever"
    )
    parser.add_argument(
        "--queries",
        type=whole_number(1, 2**40),
        default=200,
        metavar="N",
        help="number of queries, spread over the data (default: %(default)s)",
    )
    parser.add_argument(
        "--k",
        type=whole_number(1, 2**31 - 1),
        nargs="+",
        metavar="K",
        help="values of k for recall@k (default: 1 4 10)",
    )
    parser.add_argument(
        "--data",
        metavar="RECIPE|PATH|NAME",
        help="take queries from this data set (default: the memory itself)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split of that data set, or of the recipe's"
    )
    add_device(parser, "where the embedder runs")
    add_trust(parser, plugins=False)
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Measure and print; return 1 if recall is poor."""
    registry = registry_of(args)
    recipe = _recipe(args, registry)
    memory, embedder, retriever = _components(recipe, args.device)
    for k in args.k or ():
        if k > len(memory):
            raise DataError(
                f"--k {k}",
                f"can't be measured: the memory has {len(memory):,} documents",
                f"use {len(memory):,} or less",
            )
    asked = _asked(args, recipe, registry)
    source = memory if asked is None else asked
    tokenizer = _tokenizer(source, registry, args.trust_endpoints)
    chosen = queries_of(source, args.queries, tokenizer)
    of = (
        "of the memory, each excluded from its own results"
        if asked is None
        else f"of another data set of {len(asked):,}"
    )
    print(
        f"memory: {len(memory):,} documents; queries: texts and pictures of "
        f"{min(args.queries, len(source)):,} documents {of}"
    )
    found = [
        figures(retriever, embedder, queries, sorted(set(args.k or DEFAULT_K)))
        for queries in chosen
        if queries.documents
    ]
    print(table(found))
    good, line = verdict(found, exact=retriever.exact() is retriever)
    print(line)
    return int(not good)


def _recipe(args: Namespace, registry: Registry) -> Recipe:
    """The given recipe, or one made of a bank, its embedder and the default retriever."""
    from cm3apps.cli._dataset import composed
    from cm3core.plugins.registry import default_name
    from cm3core.recipe import compose
    from cm3run.bank.manifest import MANIFEST, Manifest

    target, overrides = args.target, args.overrides
    folder = user_path(target)
    if not (folder.is_dir() or (folder / MANIFEST).exists()):
        recipe = compose(target, overrides, registry=registry)
    else:
        embedder = Manifest.read(folder).embedder
        values = {
            "embedder": {"name": embedder.name, **embedder.config},
            "retriever": {
                "name": default_name(registry, "retriever", place=PLACE),
                "bank": str(folder),
            },
        }
        recipe = composed(values, overrides, registry)
        _guard_embedder(recipe, folder, args)
    if recipe.retriever is None:
        raise CM3Error(f"{PLACE} {target}", "the recipe has no retriever", "add retriever=dense")
    return recipe


def _guard_embedder(recipe: Recipe, bank: Path, args: Namespace) -> None:
    """Refuse outside targets of the embedder in a bank's manifest, unless the user allowed them."""
    from cm3run.bank.manifest import MANIFEST
    from cm3run.trust import check_links, guard, trust_of

    trust = trust_of(bank, (), args.trust_endpoints)
    check_links(bank, trust)
    given = {override.partition("=")[0] for override in args.overrides}
    if recipe.embedder is not None and "embedder" not in given:
        guard(
            recipe.embedder,
            trust,
            str(bank / MANIFEST),
            only=lambda reach: f"embedder.{reach.key}" not in given,
        )


def _components(
    recipe: Recipe, device: str | None
) -> tuple[DocumentSource, Embedder | None, Retriever]:
    """The memory, embedder and retriever of a recipe, without its other components."""
    from cm3apps.cli._dataset import data_source
    from cm3run.bank import memory_of

    assert recipe.retriever is not None
    check_config(recipe.retriever)
    memory = memory_of(recipe.retriever)
    if memory is None:
        memory = data_source(recipe, None)
    embedder = None if recipe.embedder is None else recipe.embedder.build()
    if embedder is not None and device is not None:
        from cm3run.devices import choose_device

        embedder.move_to(choose_device(device))
    return memory, embedder, recipe.retriever.build(memory, embedder)


def _asked(args: Namespace, recipe: Recipe, registry: Registry) -> DocumentSource | None:
    """The data set of the queries; None if they come from the memory."""
    from cm3apps.cli._dataset import data_source, recipe_of

    if args.data is not None:
        return data_source(recipe_of(args.data, [], registry), args.split)
    return None if args.split is None else data_source(recipe, args.split)


def _tokenizer(
    source: DocumentSource, registry: Registry, trust_endpoints: Sequence[str]
) -> ImageTokenizer | None:
    """The image tokenizer that decodes a bank's codes into pictures."""
    from cm3run.bank import MemoryBank
    from cm3run.bank_tools import bank_tools

    return (
        bank_tools(source.folder, registry, trust_endpoints=trust_endpoints).image_tokenizer
        if isinstance(source, MemoryBank)
        else None
    )


def queries_of(
    source: DocumentSource, number: int, tokenizer: ImageTokenizer | None
) -> list[Queries]:
    """The texts and the pictures of documents spread over a source, as separate queries.

    Args:
        source: pictures by reference, or codes.
        number: maximum number of documents.
        tokenizer: decodes codes; None: the source has none.

    Raises:
        DataError: there are no queries.
    """
    from cm3core.document import Codes, Image, Text
    from cm3run.training.validation import spread

    texts, images = Queries("text", [], []), Queries("image", [], [])
    for index in spread(len(source), number):
        document = source.document(index)
        exclude = {source.id(index), *source.content_keys(index)}
        if words := tuple(
            segment for segment in document if isinstance(segment, Text) and segment.text.strip()
        ):
            texts.documents.append(words)
            texts.exclude.append(exclude)
        pictures = [
            loaded
            for segment in document
            if isinstance(segment, (Image, Codes))
            for loaded in [_loaded(segment, tokenizer)]
            if loaded is not None
        ]
        if pictures:
            images.documents.append(tuple(pictures))
            images.exclude.append(exclude)
    if not texts.documents and not images.documents:
        raise DataError(
            "the queries' data set",
            "has neither texts nor pictures to use as queries",
            "name another: --data PATH",
        )
    return [texts, images]


def _loaded(picture: Image | Codes, tokenizer: ImageTokenizer | None) -> Image | None:
    """The picture with its pixels in memory, so that loading is not timed; None if it is unreadable."""
    from cm3core.document import Codes, Image, content_keys

    if isinstance(picture, Codes):
        assert tokenizer is not None
        (key,) = content_keys((picture,))
        pixels = tokenizer.decode(picture.codes[None])[0]
    else:
        try:
            key, pixels = picture.key, picture.load()
        except DataError:
            return None
    return Image(key, lambda: pixels)


def figures(
    retriever: Retriever, embedder: Embedder | None, queries: Queries, ks: Sequence[int]
) -> Figures:
    """Recall and latency of queries of one modality."""
    import numpy as np

    most, documents, exclude = max(ks), queries.documents, queries.exclude
    exact = retriever.exact()
    # warm-up: some retrievers open files with the first query
    retriever.retrieve(documents[:1], most, exclude[:1])
    together, batch_s = _timed(lambda: retriever.retrieve(documents, most, exclude))
    nearest, exact_s = (
        (together, batch_s)
        if exact is retriever
        else _timed(lambda: exact.retrieve(documents, most, exclude))
    )
    singles = range(min(len(documents), NUM_SINGLE))
    alone_s = [
        _timed(partial(retriever.retrieve, [documents[at]], most, [exclude[at]]))[1]
        for at in singles
    ]
    embedding_s = (
        [0.0]
        if embedder is None
        else [_timed(partial(embedder.embed_documents, [documents[at]]))[1] for at in singles]
    )
    return Figures(
        queries.modality,
        len(documents),
        {k: recall_at(k, together, nearest) for k in ks},
        1e3 * float(np.median(alone_s)),
        1e3 * float(np.percentile(alone_s, 90)),
        1e3 * float(np.median(embedding_s)),
        1e3 * batch_s / len(documents),
        1e3 * exact_s / len(documents),
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its duration in seconds."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def recall_at(
    k: int, found: Sequence[Sequence[Retrieved]], nearest: Sequence[Sequence[Retrieved]]
) -> float:
    """The share of all queries' `k` nearest documents that are among the first `k` found.

    Another document of the same score counts as a hit; a query may have fewer than `k`.

    >>> from cm3core.interfaces.retriever import Retrieved
    >>> a, b, c = (Retrieved(index, name, score) for index, (name, score) in enumerate([("a", 0.9), ("b", 0.5), ("c", 0.5)]))
    >>> recall_at(2, [[a, c]], [[a, b, c]]), recall_at(2, [[b, c]], [[a, b]])
    (1.0, 0.5)
    """
    hits = total = 0
    for some, best in zip(found, nearest, strict=True):
        seen, wanted = {result.index for result in some[:k]}, {result.index for result in best[:k]}
        others = [result.score for result in some[:k] if result.index not in wanted]
        for result in best[:k]:
            equal = next((score for score in others if abs(score - result.score) <= TIE), None)
            if result.index not in seen and equal is not None:
                others.remove(equal)
            hits += result.index in seen or equal is not None
        total += len(wanted)
    return hits / total if total else float("nan")


def table(rows: Sequence[Figures]) -> str:
    """A line per modality."""
    ks = list(rows[0].recall)
    lines = [
        f"{'queries':<14}"
        + "".join(f"{f'recall@{k}':>11}" for k in ks)
        + f"{'ms/query: median':>20}{'p90':>9}{'embedding':>11}{'in a batch':>12}{'exact':>9}"
    ]
    for row in rows:
        times = zip(
            (row.median_ms, row.p90_ms, row.embedding_ms, row.batch_ms, row.exact_ms),
            (20, 9, 11, 12, 9),
            strict=True,
        )
        lines.append(
            f"{f'{row.num_queries} {row.modality}':<14}"
            + "".join(f"{row.recall[k]:>11.3f}" for k in ks)
            + "".join(f"{ms:>{width}.2f}" for ms, width in times)
        )
    return "\n".join(lines)


def verdict(rows: Sequence[Figures], *, exact: bool) -> tuple[bool, str]:
    """Whether recall is good, and a line that says so, with the next step if it is poor.

    Args:
        rows: of every modality.
        exact: the retriever is its own exact form.
    """
    if exact:
        return True, "verdict: exact, no document is missed"
    poor = []
    for row in rows:
        k = min(row.recall, key=lambda number: (abs(number - GATE_K), number))
        if row.recall[k] != row.recall[k]:
            return True, "verdict: none; the retriever's thresholds leave no documents to find"
        if row.recall[k] < GOOD_RECALL:
            poor.append(
                f"{row.recall[k]:.3f} of the {k} nearest documents of {row.modality} queries"
            )
    if not poor:
        return True, f"verdict: good, at least {GOOD_RECALL} of the nearest documents are found"
    return False, (
        f"verdict: poor, it finds {' and '.join(poor)}; {GOOD_RECALL} is good\n"
        "  next: double retriever.nprobe (index ivf, pq) or retriever.ef_search (hnsw) until it "
        "is; with pq\n"
        "        also retriever.num_candidates; or use retriever.index=flat, which is exact but "
        "slow"
    )
