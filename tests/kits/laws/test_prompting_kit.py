"""The kits of prompt rewriters and finishers: right ones pass, and each law fails for one that is wrong in just that way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cm3core.document import Text
from cm3icons.config import IconFinisherConfig
from cm3kits.prompting import FinisherContract, PromptRewriterContract
from cm3run.prompting import AsDecoded, AsItStands, Finisher, Found, PromptRewriter
from kit_mutants import assert_covers, assert_law_fails, cases
from toy_model import OtherWords


class TestAsItStands(PromptRewriterContract):
    def make(self) -> PromptRewriter:
        return AsItStands()


class TestOtherWords(PromptRewriterContract):
    def make(self) -> PromptRewriter:
        return OtherWords({"zzz": "dog", "two": "2"})


class TestAsDecoded(FinisherContract):
    def make(self) -> Finisher:
        return AsDecoded()


class TestIcon(FinisherContract):
    config = IconFinisherConfig()


class TestIconWithWords(FinisherContract):
    config = IconFinisherConfig(colour_words=["red", "in colour"])


class Nothing(AsItStands):
    def _rewrite(self, prompt, known):
        return ""


class NoText(AsItStands):
    def _rewrite(self, prompt, known):
        return prompt.split()


class Counting(AsItStands):
    number = itertools.count()

    def _rewrite(self, prompt, known):
        return f"{prompt} {next(self.number)}"


class OtherSubject(AsItStands):
    def subject(self, text):
        return f"{text} icon"


class TooMany(AsItStands):
    def search(self, asked):
        results = yield asked.query, asked.number + 1
        return Found(results)


class Twice(AsItStands):
    def search(self, asked):
        results = yield asked.query, asked.number
        return Found(results[:1] * asked.number)


class Endless(AsItStands):
    def search(self, asked):
        while True:
            yield asked.query, asked.number


class WithoutThePicture(AsItStands):
    def search(self, asked):
        texts = tuple(part for part in asked.query if isinstance(part, Text))
        return Found((yield texts, asked.number))


class AnyOrder(AsItStands):
    number = itertools.count(1)

    def search(self, asked):
        results = yield asked.query, asked.number
        return Found(results[: next(self.number) % (len(results) + 1)])


class NoTurn(AsItStands):
    def turns(self, found, asked):
        return []


class BehindTheEnd(AsItStands):
    def turns(self, found, asked):
        return [0, len(found.results)]


REWRITERS = {
    "a_prompt_stays_a_text": [Nothing, NoText],
    "rewriting_is_deterministic": [Counting],
    "the_subject_is_a_part_of_the_text": [OtherSubject],
    "a_search_returns_what_it_found": [TooMany, Twice, Endless, WithoutThePicture],
    "searching_is_deterministic": [AnyOrder],
    "turns_are_places_of_results": [NoTurn, BehindTheEnd],
}


class Cropping(AsDecoded):
    def _finish(self, pixels, texts, pictures):
        return pixels[1:]


class Floats(AsDecoded):
    def _finish_decoded(self, pixels):
        return pixels / 255


class InPlace(AsDecoded):
    def _finish(self, pixels, texts, pictures):
        pixels[0, 0] = 255 - pixels[0, 0]
        return pixels


class Noisy(AsDecoded):
    seeds = itertools.count()

    def _finish(self, pixels, texts, pictures):
        noise = np.random.default_rng(next(self.seeds)).integers(0, 9, pixels.shape, np.uint8)
        return pixels ^ noise


class NoXML(AsDecoded):
    def svg(self, pixels, enlarged=1):
        return "<svg>"


class OtherXML(AsDecoded):
    def svg(self, pixels, enlarged=1):
        return "<html></html>"


FINISHERS = {
    "pictures_keep_their_size": [Cropping, Floats, InPlace],
    "finishing_is_deterministic": [Noisy],
    "an_svg_is_one": [NoXML, OtherXML],
}


def test_every_law_has_a_mutant() -> None:
    assert_covers(PromptRewriterContract, REWRITERS)
    assert_covers(FinisherContract, FINISHERS)


@pytest.mark.parametrize(("law", "wrong"), cases(REWRITERS))
def test_a_law_finds_a_wrong_rewriter(law: str, wrong: type[PromptRewriter]) -> None:
    assert_law_fails(PromptRewriterContract, law, {"make": lambda self: wrong()})


@pytest.mark.parametrize(("law", "wrong"), cases(FINISHERS))
def test_a_law_finds_a_wrong_finisher(law: str, wrong: type[Finisher]) -> None:
    assert_law_fails(FinisherContract, law, {"make": lambda self: wrong()})
