"""The rerankers' kit: a right reranker passes, and each law fails for one that is wrong in just
that way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cm3core.document import Codes
from cm3core.interfaces.reranker import Candidate, Reranker
from cm3kits.reranker import RerankerContract
from kit_mutants import assert_covers, assert_law_fails, cases


class Right(Reranker):
    """Letters, and codes of every picture."""

    measure = "sum of codes and letters"
    calls = 0

    def one(self, candidate: Candidate) -> float:
        codes = sum(int(part.codes.sum()) for part in candidate.document if isinstance(part, Codes))
        return float(codes + sum(map(len, candidate.texts)))

    def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        Right.calls += 1
        return [self.one(candidate) for candidate in candidates]


class TestRight(RerankerContract):
    def make(self) -> Reranker:
        return Right()


class AgainstTheBest(Right):
    def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        scores = super()._score(candidates)
        return [score - max(scores) for score in scores]


class FirstIsBest(Right):
    def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        return [score - place for place, score in enumerate(super()._score(candidates))]


class WholeNumbers(Right):
    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        return [int(score) for score in super().score(candidates)]


class OneScoreForAll(Right):
    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        return super().score(candidates)[:1]


class NotFinite(Right):
    def one(self, candidate: Candidate) -> float:
        return float("inf")


class LikesSeeds(Right):
    def one(self, candidate: Candidate) -> float:
        return super().one(candidate) + candidate.seed


class GrowsTired(Right):
    def one(self, candidate: Candidate) -> float:
        return super().one(candidate) - Right.calls


class HasATasteOfItsOwn(Right):
    def __init__(self) -> None:
        Right.calls += 1
        self.taste = Right.calls

    def one(self, candidate: Candidate) -> float:
        return super().one(candidate) + self.taste


class SortsTheCandidates(Right):
    def _score(self, candidates: list[Candidate]) -> Sequence[float]:  # type: ignore[override]  # wrong on purpose
        scores = super()._score(candidates)
        candidates.sort(key=self.one)
        return scores


class Nameless(Right):
    measure = ""


class NamedByItself(Right):
    @property
    def measure(self) -> str:
        return f"sum by {id(self)}"


MUTANTS = {
    "a_score_is_the_candidate_s_own": [AgainstTheBest, FirstIsBest],
    "each_candidate_gets_a_finite_number": [WholeNumbers, OneScoreForAll, NotFinite],
    "equal_candidates_have_equal_scores": [LikesSeeds],
    "inputs_are_not_written_to": [SortsTheCandidates],
    "scores_repeat": [GrowsTired, HasATasteOfItsOwn],
    "the_measure_is_named": [Nameless, NamedByItself],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_reranker_fails(law: str, wrong: type[Right]) -> None:
    assert_law_fails(RerankerContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(RerankerContract, MUTANTS)
