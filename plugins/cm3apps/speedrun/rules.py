"""The rules of a speedrun that a program can check: the data, the image codes, no other weights, and the goal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from cm3core.errors import RecipeError

if TYPE_CHECKING:
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe

#: Scores of the metric `usable` that a record states.
JUDGED = ("usable", "thing", "thing_top5", "in_hand", "copied")


@dataclass(frozen=True)
class Track:
    """What all entries have in common.

    Args:
        recipe: the recipe whose data set and image tokenizer are used.
        data, codes: fingerprints of the training documents and the image tokenizer, 16 characters each.
        splits: the held-out splits; things of the first are drawn and judged.
        documents: validated documents of each.
        drawings: judged drawings.
        nats: the goal: greatest loss in nats an image code, mean over splits and seeds.
        scores: the goal: lowest mean of judged scores in percent.
        seeds: least number of seeds.
        threads: most CPU threads.
    """

    recipe: str
    data: str
    codes: str
    splits: tuple[str, ...] = ("restyle", "variant")
    documents: int = 256
    drawings: int = 100
    nats: float = 1.8
    scores: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 3
    threads: int = 2


#: The only track so far.
ICONS = Track(
    "quickstart",
    data="b6b3ab74c68fcf98",
    codes="76f8d0102751956d",
    scores={"thing_top5": 10.0, "in_hand": 50.0},
)


def check_entry(recipe: Recipe, track: Track, registry: Registry) -> None:
    """Raise `RecipeError` if a recipe breaks a rule.

    Args:
        recipe: of the entry.
        track: the rules.
        registry: the plugins that the recipe was composed with.
    """
    for broken in _broken(recipe, track, registry):
        raise broken


def _broken(recipe: Recipe, track: Track, registry: Registry) -> Iterator[RecipeError]:
    from cm3core.recipe import compose
    from cm3run.build import source_of

    own, common = recipe.to_dict(), compose(track.recipe, registry=registry).to_dict()
    for section in ("dataset", "image_tokenizer"):
        if own.get(section) != common[section]:
            yield RecipeError(
                section,
                f"is not that of recipe {track.recipe}, which all entries of a speedrun share",
                f"remove its keys from the recipe; everything but {section} may change",
            )
    if recipe.train.start_from is not None:
        yield RecipeError(
            "train.start_from", "is set, but a speedrun begins with random weights", "remove it"
        )
    if recipe.train.num_threads is not None and recipe.train.num_threads > track.threads:
        yield RecipeError(
            "train.num_threads",
            f"is {recipe.train.num_threads}, and a speedrun has {track.threads}",
            "lower it",
        )
    if recipe.retriever is not None and recipe.retriever.bank is not None:
        yield RecipeError(
            "retriever.bank", "is set, but documents are those of the training", "remove it"
        )
    found = source_of(recipe, registry).content_fingerprint[:16]
    if found != track.data:
        yield RecipeError(
            "dataset",
            f"has the fingerprint {found}, and the data of the speedrun has {track.data}",
            "install the version of cm3leon that the entries were made with",
        )


@dataclass(frozen=True)
class Verdict:
    """Whether some seeds reach the goal.

    Args:
        core_minutes: their mean processor time; None: not all are known.
        nats: their losses.
        missed: what is not reached, in words.
    """

    core_minutes: float | None
    nats: tuple[float, ...]
    missed: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return not self.missed


def verdict(runs: Sequence[Mapping[str, Any]], track: Track) -> Verdict:
    """Compare the means over seeds with the goal.

    >>> track = Track("quickstart", "", "", nats=2.0, scores={"in_hand": 50.0}, seeds=2)
    >>> runs = [{"core_minutes": 4.0, "nats": 1.9, "scores": {"in_hand": 40.0}},
    ...         {"core_minutes": 6.0, "nats": 2.0, "scores": {"in_hand": 50.0}}]
    >>> verdict(runs, track).missed
    ('in_hand is 45.0%, and at least 50% is the goal',)
    """
    losses = tuple(float(run["nats"]) for run in runs)
    missed = []
    if mean(losses) > track.nats:
        missed.append(f"the loss is {mean(losses):.3f} nats a code, and {track.nats:g} is the goal")
    for name, least in track.scores.items():
        found = mean(float(run["scores"][name]) for run in runs)
        if found < least:
            missed.append(f"{name} is {found:.1f}%, and at least {least:g}% is the goal")
    if len(runs) < track.seeds:
        missed.append(f"{len(runs)} of {track.seeds} seeds were run")
    spent = [run["core_minutes"] for run in runs]
    if unknown := spent.count(None):
        missed.append(f"{unknown} trainings were resumed, so that their time is not known")
    return Verdict(None if unknown else mean(spent), losses, tuple(missed))


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return stdev(values) if len(values) > 1 else 0.0
