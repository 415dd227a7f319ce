"""Answers to questions by ranking: the most probable one of a list, as classifiers of VQA answer.

Nothing is sampled and nothing prepended. Probabilities are of whole answers, so that a long one is less
probable than its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from cm3core.document import PixelArray
from cm3run.model import Model
from cm3run.model.tasks import record_of, task_for


def most_probable(
    model: Model, picture: PixelArray, question: str, answers: Sequence[str]
) -> tuple[str, list[float]]:
    """The most probable answer, the first of equals; and log p of each, in nats.

    Args:
        model: tuned for questions, or not tuned at all.
        picture: uint8 [H, W, 3], of any size.
        question: the question.
        answers: at least one.

    Raises:
        GenerationError: the model was tuned, and not for questions.
    """
    task, likelihood = task_for(model, "ask"), model.components.likelihood
    record = record_of(task, question, model.encode([picture])[0])
    [response] = task.responses
    prompt = task.prompt(record, max_tokens=None)
    filled = [task.document({**record, response: answer}) for answer in answers]
    contents = [likelihood.contents_of(prompt, one) for one in filled]
    found = likelihood.log_probability([prompt] * len(answers), contents)
    nats = [value.nats for value in found]
    return answers[nats.index(max(nats))], nats
