"""Speed and agreement of `sqlite` and `bm25`: `python compare.py [RECIPE] [SPLIT]`."""

import statistics
import sys
import time
from dataclasses import replace

from cm3core.document import Text, text_of
from cm3core.plugins import load_registry
from cm3core.recipe import compose

RETRIEVERS = {
    "bm25": "retriever=bm25",
    "sqlite, no stems": "retriever=sqlite retriever.stem=false",
    "sqlite": "retriever=sqlite",
}


def main(recipe="retrieval-gain", split="unseen", num_queries=200):
    registry, found = load_registry(), {}
    for name, overrides in RETRIEVERS.items():
        composed = compose(recipe, overrides.split(), registry=registry)
        memory, asked = (
            replace(composed.dataset, split=part).build()
            for part in (composed.dataset.split, split)
        )
        queries = [
            (Text(text_of(asked.document(index))),) for index in range(min(num_queries, len(asked)))
        ]
        started = time.perf_counter()
        retriever = composed.retriever.build(memory, None)
        opened, times, found[name] = time.perf_counter() - started, [], []
        for query in queries:
            started = time.perf_counter()
            found[name].append(retriever.retrieve([query], 4)[0])
            times.append(1000 * (time.perf_counter() - started))
        print(
            f"{name:<17} opened in {opened:.2f} s; {statistics.median(times):.2f} ms a query, "
            "the slowest tenth "
            f"{statistics.quantiles(times, n=10)[-1]:.1f}"
        )
    for name in list(found)[1:]:
        pairs = [
            (a[0].score, b[0].index in [one.index for one in a if one.score == a[0].score])
            for a, b in zip(found["bm25"], found[name], strict=True)
            if a and b
        ]
        print(
            f"{name}: its best document is a best one of bm25 for "
            f"{sum(same for _, same in pairs)} of {len(pairs)} queries, "
            f"as {len(memory):,} documents are searched"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
