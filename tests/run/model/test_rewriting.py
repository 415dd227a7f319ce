"""A prompt rewriter in generation: what is searched for, how often, and what results say of it."""

from __future__ import annotations

import pytest

from cm3core.document import Text, text_of
from cm3run.model import Model
from cm3run.model.prepending import search
from cm3run.prompting import AsItStands, Found
from toy_model import FirstRetriever, picture, toy_model, worded


class UntilNamed(AsItStands):
    """Drops the first word until a document has the text as its own, or one word is left."""

    def search(self, asked):
        text = text_of(asked.query)
        while True:
            results = yield (Text(text),), asked.number
            named = [one for one in results if asked.text_of(one) == text]
            if named or " " not in text:
                return Found(named or results, text, text)
            text = text.partition(" ")[2]


class Counting(FirstRetriever):
    def __init__(self) -> None:
        self.searches: list[list[str]] = []

    def _retrieve(self, queries, num_retrieved, exclude):
        self.searches.append([text_of(query) for query in queries])
        return super()._retrieve(queries, num_retrieved, exclude)


@pytest.fixture
def searching() -> Model:
    model = toy_model(max_text_tokens=60)
    model.components.retriever = Counting()
    model.components.prompt_rewriter = UntilNamed()
    return model


def test_a_batch_is_searched_for_together(searching: Model) -> None:
    prompts = ["red", "a big blue", "a bird"]
    found = search(searching, [(Text(one),) for one in prompts], 3, [()] * 3)
    together = searching.components.retriever.searches
    assert together == [prompts, ["big blue", "bird"], ["blue"]]
    assert [one.query for one in found] == ["red", "blue", "bird"]
    alone = [search(searching, [(Text(one),)], 3, [()])[0] for one in prompts]
    assert found == alone


def test_the_prompt_itself_is_whole(searching: Model) -> None:
    jobs, _ = searching.image_jobs("a red", 1)
    [job] = jobs
    assert searching.components.retriever.searches == [["a red"], ["red"]]
    assert Text("a red") in job.requests[0].document


def test_results_say_what_was_looked_for() -> None:
    model = worded(toy_model(max_text_tokens=60), crow="bird")

    def said(prompt: str, **options: object) -> set[str]:
        [made] = model.generate(prompt, 1, **options)
        return {one.looked_for for one in made.retrieved}

    assert said("bird") == {""}
    assert said("a crow, outline") == {"a bird, outline"}
    assert said("a crow", context=[(picture(), "a bird")]) == {""}
    assert model.query_text("a crow") == "a bird"
    assert model.thing_asked_for("crow, crow") == "bird"
