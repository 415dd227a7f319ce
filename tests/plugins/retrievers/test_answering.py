"""What `hybrid` and `facets` tell of prompts: found, restyled or composed, by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cm3core.config.schema import to_plain
from cm3core.document import Text, text_of
from cm3core.errors import CheckpointError, PluginError, RecipeError
from cm3core.interfaces.retriever import Retrieved
from cm3icons.facets import FacetsRetrieverConfig
from cm3kits.retriever import HashEmbedder, ListSource
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers import BM25RetrieverConfig, HybridRetrieverConfig
from cm3run.checkpoint.opening import check_recipe
from cm3run.prompting import Answer, AnsweringRetriever
from cm3run.training.neighbours import retriever_fingerprint
from messages import tells
from toy_finder import DRAWINGS, Drawings, config
from toy_model import toy_model

HYBRID = HybridRetrieverConfig(same_above=0.9, unknown_below=0.5)


def answer(
    retriever: AnsweringRetriever, prompt: str, exclude: Sequence[str] = ()
) -> tuple[list[str], Answer]:
    [(results, found)] = retriever.answer([(Text(prompt),)], 3, [exclude])
    assert found is not None
    return [one.id for one in results], found


@pytest.fixture(params=[HYBRID, config()], ids=["hybrid", "facets"])
def retriever(request: pytest.FixtureRequest) -> AnsweringRetriever:
    built = request.param.build(Drawings(), HashEmbedder(256))
    assert isinstance(built, AnsweringRetriever)
    assert built.answers
    return built


def originals(retriever: AnsweringRetriever, prompt: str, *exclude: str) -> tuple[str, list[str]]:
    _, found = answer(retriever, prompt, exclude)
    return found.kind, [one.id for one in found.originals]


def test_the_thing_in_the_hand_that_is_asked_for_is_found(retriever):
    assert originals(retriever, "bell, outline, lucide") == ("found", ["lucide/bell"])
    assert originals(retriever, "filled plug") == ("found", ["mdi/plug"])
    # all hands that have the words, the nearest first; without a hand, all
    assert originals(retriever, "bell, outline") == ("found", ["tabler/bell", "lucide/bell"])
    kind, all_bells = originals(retriever, "bell")
    assert (kind, sorted(all_bells)) == ("found", ["lucide/bell", "mdi/bell", "tabler/bell"])


def test_the_thing_in_other_hands_is_restyled(retriever):
    assert originals(retriever, "plug, outline, tabler") == ("restyled", [])
    assert originals(retriever, "bell ring, lucide") == ("restyled", [])
    # a set that the memory has nothing of
    assert originals(retriever, "bell, outline, streamline") == ("restyled", [])
    assert answer(retriever, "bell, outline, streamline")[1].missing == ("streamline",)


def test_words_that_name_no_style_are_left_out_beside_others(retriever):
    """They were read as the name of a set that the memory lacks, so that the thing was in "other styles only"."""
    assert originals(retriever, "bell, lucide style") == ("found", ["lucide/bell"])
    _, found = answer(retriever, "bell, lucide style")
    assert (found.ignored, found.missing, found.apart) == (("style",), (), ())
    _, found = answer(retriever, "plug, lucide tabler")
    assert (found.kind, found.apart) == ("restyled", ("lucide", "tabler"))


def test_typing_errors_are_corrected_and_told(retriever):
    _, found = answer(retriever, "bel, lucide")
    assert (found.kind, found.asked, found.respelt) == ("found", "bell", (("bel", "bell"),))
    assert found.remarks == "'bel' is read as 'bell'"
    _, found = answer(retriever, "bell, lucide")
    assert (found.respelt, found.remarks) == ((), "")


def test_near_names_are_offered(retriever):
    _, found = answer(retriever, "bell ring off, tabler")
    assert found.near[0][0] == "bell ring"
    assert found.offers == tuple(name for name, score in found.near if score >= 0.5)
    assert found.near[0][1] == found.score
    _, found = answer(retriever, "zebra")
    assert (found.knows_a_word, found.is_arbitrary, found.offers) == (False, True, ())


def test_anything_else_is_composed(retriever):
    _, found = answer(retriever, "zebra, lucide")
    assert (found.kind, found.asked, found.is_unknown) == ("composed", "zebra", True)
    assert found.score < 0.5
    assert found.unknown_below == 0.5
    _, near = answer(retriever, "bell ring off, tabler")
    assert (near.kind, near.thing) == ("composed", "bell ring")


def test_what_is_excluded_is_no_answer(retriever):
    assert originals(retriever, "bell, lucide", "lucide/bell") == ("restyled", [])
    assert originals(retriever, "bell ring", "tabler/bell-ring") == ("composed", [])


def test_a_query_without_text_has_no_answer(retriever):
    [(_, found)] = retriever.answer([()], 2, [()])
    assert found is None


def test_facets_prepends_the_thing_then_another_in_the_hand():
    retriever = config().build(Drawings(), HashEmbedder(256))
    documents, _ = answer(retriever, "plug, outline, tabler")
    assert DRAWINGS[documents[0]].startswith("plug")
    assert documents[1].startswith("tabler/")
    # without a hand there are things alone
    assert answer(retriever, "plug")[0][:2] in (
        ["lucide/plug", "mdi/plug"],
        ["mdi/plug", "lucide/plug"],
    )


def test_prompts_are_compared_by_meaning_and_training_by_words():
    texts = ["folder lock, outline, lucide", "folder, filled, mdi", "on call, outline, lucide"]
    memory = ListSource([(Text(text),) for text in texts])
    meanings = HybridRetrieverConfig(encoder=MiniLMConfig(), same_above=0.9)
    with_meanings = FacetsRetrieverConfig(meanings=meanings).build(memory, None)
    by_words = FacetsRetrieverConfig().build(memory, None)
    query = (Text("padlock on a folder"),)
    assert with_meanings.retrieve([query], 3) == by_words.retrieve([query], 3)
    assert "_meanings" not in vars(with_meanings), "training opens no encoder"
    [(results, _)] = with_meanings.answer([query], 1, [()])
    assert text_of(memory.document(results[0].index)) == texts[0]


def test_without_the_least_similarity_nothing_is_claimed():
    assert not HybridRetrieverConfig().build(Drawings(), HashEmbedder()).answers
    assert not FacetsRetrieverConfig().build(Drawings(), None).answers
    assert not FacetsRetrieverConfig(meanings=HybridRetrieverConfig()).answers


def test_runs_of_before_can_be_resumed_with_their_neighbours():
    before, after = FacetsRetrieverConfig(), FacetsRetrieverConfig(meanings=HYBRID)
    assert "meanings" not in to_plain(before)
    assert "same_above" not in to_plain(HybridRetrieverConfig())
    memory = Drawings()
    assert retriever_fingerprint(before, None, memory) == retriever_fingerprint(after, None, memory)
    recipe = toy_model().recipe
    stored, now = (replace(recipe, retriever=one) for one in (before, after))
    check_recipe(Path("run"), stored, now)
    with pytest.raises(CheckpointError):
        check_recipe(Path("run"), stored, replace(now, retriever=replace(after, b=0.5)))


def test_another_retriever_of_meanings_is_refused():
    with pytest.raises(RecipeError) as error:
        FacetsRetrieverConfig(meanings=BM25RetrieverConfig()).check()
    assert tells(error.value, "retriever.meanings: ... does not compare things and hands ...")


class Wrong(AnsweringRetriever):
    memory = Drawings()

    def _retrieve(self, queries, num_retrieved, exclude):
        return [[] for _ in queries]

    def _answer(self, queries, num_retrieved, exclude):
        return self.given


@pytest.mark.parametrize(
    "given",
    [
        [],
        [([Retrieved(0, "lucide/bell", 1.0)] * 2, None)],
        [([], Answer("found", "a", "b", 1.0, 0.9, 0.5, (Retrieved(99, "x", 1.0),)))],
        [([], Answer("found", "a", "b", 1.0, 0.9, 0.5, (Retrieved(0, "lucide/bell", 1.0),)))],
    ],
)
def test_wrong_answers_of_plugins_are_refused(given):
    retriever = Wrong()
    retriever.given = given
    with pytest.raises(PluginError):
        retriever.answer([(Text("bell"),)], 1, [["lucide/bell"]])
