"""`Model.generate` with a memory that tells what it has: originals first, then drawn pictures, each with its answer."""

from __future__ import annotations

import asyncio
import json

import pytest

from cm3core.errors import DataError, GenerationError
from cm3run.attribution import facts_in, png
from cm3run.generation.engine import Session
from cm3run.model.aio import AsyncModel
from cm3run.model.facts import facts_of, original_of
from cm3run.model.prepending import Retrieval
from cm3run.model.results import GeneratedImage, ImageReady
from cm3run.prompting import AsItStands
from messages import tells
from toy_finder import Drawings, finder
from toy_model import picture, toy_model


@pytest.fixture(scope="module")
def model():
    return finder()


def ids(pictures: list[GeneratedImage]) -> list[str]:
    """The id of each original, "" of what was drawn."""
    return ["" if one.original is None else one.retrieved[0].id for one in pictures]


def kinds(pictures: list[GeneratedImage]) -> list[str]:
    return [one.answer.kind for one in pictures if one.answer is not None]


def test_what_the_memory_has_is_returned_undrawn(model, monkeypatch):
    monkeypatch.setattr(Session, "submit", None)
    [one] = model.generate("bell, lucide", seed=3)
    assert one.original == Drawings().original(0)
    assert (one.pixels == 20).all()
    assert (one.drawn, one.log_probability, one.choice, one.seed) == (None, 0.0, None, 3)
    with pytest.raises(GenerationError) as caught:
        _ = one.codes
    assert tells(caught.value, "codes: the picture was found in the memory, and has none")
    assert one.retrieved[0].provenance.licence == "ISC"
    assert one.retrieved[0].score == pytest.approx(one.answer.score, abs=1e-6)
    assert (
        one.told
        == "found: lucide/bell (ISC) is 'bell, outline rounded, lucide', similarity 1.00; this is its original"
    )
    assert one.nearest is None


def test_documents_are_prepended_only_for_what_is_drawn(model, monkeypatch):
    prepended, prepend = [], Retrieval._with

    def counted(self, request, *arguments):
        prepended.append(request.seed)
        return prepend(self, request, *arguments)

    monkeypatch.setattr(Retrieval, "_with", counted)
    assert ids(model.generate("bell, lucide", seed=3)) == ["lucide/bell"]
    assert prepended == []
    assert ids(model.generate("bell, lucide", 2, seed=3)) == ["lucide/bell", ""]
    assert prepended == [3]


def test_a_number_is_filled_with_further_originals_then_with_drawings(model):
    pictures = model.generate("bell, outline", 4, seed=1)
    assert ids(pictures) == ["tabler/bell", "lucide/bell", "", ""]
    assert kinds(pictures) == ["found", "found", "restyled", "restyled"]
    assert [one.number for one in pictures] == [0, 1, 2, 3]
    assert pictures[2].told.startswith(
        "restyled: the index has 'bell' in this style, too: tabler/bell"
    )
    # the first are the same for any number
    assert ids(model.generate("bell, outline", 1, seed=1)) == ["tabler/bell"]
    # without a number, only originals, at most the recipe's number (2)
    assert ids(model.generate("bell, outline", seed=1)) == ["tabler/bell", "lucide/bell"]
    assert ids(model.generate("bell", seed=1))[0] != ""
    assert len(model.generate("bell", seed=1)) == 2
    assert ids(model.generate("bell, lucide", seed=1)) == ["lucide/bell"]


def test_seeds_repeat_found_and_drawn_pictures(model):
    pictures = model.generate("bell, outline", 4, seed=1)
    for one in pictures:
        again = model.generate(
            "bell, outline", 1, seed=one.seed, num_candidates=1, draw=one.original is None
        )[0]
        assert (again.pixels == one.pixels).all()
        assert again.original == one.original


def test_drawing_can_be_insisted_on(model):
    pictures = model.generate("bell, lucide", 2, seed=1, draw=True)
    assert ids(pictures) == ["", ""]
    assert kinds(pictures) == ["restyled"] * 2
    assert pictures[0].retrieved[0].id == "lucide/bell"


def test_restyled_and_composed_pictures_say_after_what(model):
    [one, _] = model.generate("plug, outline, tabler", seed=1)
    assert one.told.startswith(
        "restyled: the index has 'plug' in other styles or sets only; drawn after "
    )
    assert one.retrieved[0].text.startswith("plug")
    [one, _] = model.generate("zebra plug crossing, lucide", seed=1)
    assert one.told.startswith("composed: a guess; drawn after ")
    assert "; the index: it has nothing like 'zebra plug crossing'; the nearest is " in one.told
    assert one.told.endswith("; below 0.5 it means little")
    near = finder(unknown_below=0.1)
    [one, _] = near.generate("bell ring off, tabler", seed=1)
    assert "it has no 'bell ring off', did you mean 'bell ring' (similarity 0." in one.told


def test_a_prompt_without_a_known_word_is_refused(model):
    """Neither alone nor among others; unless it is insisted on, and then it is a guess."""
    for prompts in ("zebra", ["bell, lucide", "zebra, lucide"]):
        for draw in (False, True):
            with pytest.raises(GenerationError) as caught:
                model.generate(prompts, 1, seed=1, draw=draw)
            assert tells(
                caught.value,
                "... no word of it is in the index: it has nothing like 'zebra'; ... ; below 0.5 it means little",
            )
            assert caught.value.next_step == "use another word for it"
    [one] = model.generate("zebra", 1, seed=1, force=True)
    assert kinds([one]) == ["composed"]
    near = finder(unknown_below=0.01)
    with pytest.raises(GenerationError, match="it has no 'zebra', did you mean '"):
        near.generate("zebra", 1, seed=1)


def test_typing_errors_and_left_out_words_are_told(model):
    [one] = model.generate("bel, lucide style", 1, seed=1)
    assert ids([one]) == ["lucide/bell"]
    assert one.told.endswith(
        "; 'bel' is read as 'bell'; no style or set is called 'style', which is left out"
    )
    [one] = model.generate("bell, lucide tabler", 1, seed=1)
    assert one.told.endswith("; no style or set has 'lucide' and 'tabler' together")
    [one] = model.generate("bell, streamline", 1, seed=1)
    assert kinds([one]) == ["restyled"]
    assert one.told.endswith("; no style or set is called 'streamline'")


def test_the_thing_is_prepended_even_if_its_best_document_cant_be(monkeypatch):
    """Such as a drawing that has too many codes; tokenizers of drawings retrieve some spare documents."""
    monkeypatch.setattr(AsItStands, "spare", 4)
    first, second = finder().generate("plug, outline, tabler", 1, seed=1)[0].retrieved
    read = Retrieval._document

    def document(self, found):
        if found.id == first.id:
            raise DataError("SVG", "needs 300 codes", "use another")
        return read(self, found)

    monkeypatch.setattr(Retrieval, "_document", document)
    third, same = finder().generate("plug, outline, tabler", 1, seed=1)[0].retrieved
    assert third.text.startswith("plug")
    assert third.id != first.id
    assert same.id == second.id


def test_prompts_of_one_call_have_their_own_answers(model):
    prompts = ["bell, lucide", "zebra plug crossing, lucide", "plug, filled"]
    pictures = model.generate(prompts, seed=1)
    assert [one.prompt for one in pictures] == [prompts[0], prompts[1], prompts[1], prompts[2]]
    assert kinds(pictures) == ["found", "composed", "composed", "found"]
    assert [one.number for one in pictures] == [0, 0, 1, 0]
    seen = []
    list(model.stream(prompts, 1, seed=1, progress=lambda done, total: seen.append(total)))
    assert set(seen) == {16}  # one picture of 16 codes is drawn


def test_candidates_are_counted_in_events(model):
    events = list(model.events(["bell, lucide", "zebra plug crossing"], 2, seed=1))
    ready = [one for one in events if isinstance(one, ImageReady)]
    assert [one.request for one in ready] == [0, 1, 2, 3]
    assert ids([one.image for one in ready]) == ["lucide/bell", "", "", ""]


def test_coroutines_find_the_same(model):
    async def made() -> tuple[list[GeneratedImage], list[int]]:
        async with AsyncModel(finder()) as loaded:
            pictures = await loaded.generate("bell, outline", 3, seed=1)
            events = [
                one.request
                async for one in loaded.events(
                    ["bell, lucide", "zebra plug crossing"], 2, seed=1, details=False
                )
                if isinstance(one, ImageReady)
            ]
            return pictures, sorted(events)

    pictures, numbers = asyncio.run(made())
    assert ids(pictures) == ["tabler/bell", "lucide/bell", ""]
    assert numbers == [0, 1, 2, 3]


def test_equal_drawings_are_returned_once(monkeypatch):
    monkeypatch.setattr(Drawings, "original", lambda self, index: Drawings().suffix and _same)
    assert ids(finder().generate("bell, outline", 2, seed=1)) == ["tabler/bell", ""]


_same = Drawings().original(0)


def test_without_original_files_everything_is_drawn():
    pictures = finder(suffix=None).generate("bell, lucide", 1, seed=1)
    assert (ids(pictures), kinds(pictures)) == ([""], ["restyled"])


def test_what_retrieves_nothing_has_no_answer(model):
    for options in ({"num_retrieved": 0}, {"context": [(picture(), "bell")]}):
        [one] = model.generate("bell, lucide", 1, seed=1, **options)
        assert (one.answer, one.original, one.told) == (None, None, "")
    [one] = toy_model().generate("red", 1, draw=True)
    assert (one.answer, one.original) == (None, None)


def test_a_conversation_draws(model):
    reply = model.chat("bell, lucide", answer="image", force=True)
    assert len(reply.pictures[0].codes.codes) == 16


def test_files_say_it(model):
    found, drawn = model.generate("bell, lucide", 2, seed=1)
    facts = facts_in(png(found.pixels, facts_of(model, found)), "found")
    told = json.loads(facts.texts["answer"])
    assert (told["kind"], told["thing"], told["guess"]) == ("found", "bell", False)
    assert facts.texts["original"] == "lucide/bell"
    assert [one.provenance.licence for one in facts.credits] == ["ISC"]
    assert b"trainedAlgorithmicMedia" not in png(found.pixels, facts_of(model, found))
    content = png(drawn.pixels, facts_of(model, drawn))
    assert json.loads(facts_in(content, "drawn").texts["answer"])["kind"] == "restyled"
    assert b"trainedAlgorithmicMedia" in content
    [(suffix, original)] = original_of(found)
    assert suffix == ".svg"
    assert b'<path d="M0 2h4"/>' in original
    assert b"Ann Line" in original
    assert original_of(drawn) == []
    assert "answer" not in facts_of(model, model.generate("bell", 1, num_retrieved=0)[0]).texts
