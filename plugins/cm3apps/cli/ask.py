"""`cm3 ask`: answer a question about a picture."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3apps.cli import INPUT, RESULTS, grouped, whole_number
from cm3apps.cli._model import (
    Retrieval,
    add_task,
    claim_retrieved,
    printable,
    refuse_untuned,
    report_unknown_words,
    report_unlike_picture,
    seen,
    show_choice,
    show_retrieved,
    task_options,
    write_retrieved,
)
from cm3apps.cli.opening import add_model_options, open_model, progress_bar

HELP = "answer a question about a picture"
EXAMPLE = """  cm3 ask picture.png "What is it?"
  cm3 ask picture.png "What colour is the apple?" --model runs/tuned
  cm3 ask picture.png "What is it?" --template "Question: {question} The answer is {answer}." --force --max-tokens 8"""


def configure(parser: ArgumentParser) -> None:
    """Add the picture, the question and the options."""
    grouped(parser, INPUT).add_argument(
        "picture",
        type=Path,
        help="a picture's file; the model sees its largest centred square. A model of drawings also reads SVG files",
    )
    grouped(parser, INPUT).add_argument(
        "question", help="the question; needs a model tuned for questions"
    )
    grouped(parser, INPUT).add_argument(
        "--template",
        metavar="TEXT",
        help="the template used in tuning: {question} ... {answer}",
    )
    grouped(parser, RESULTS).add_argument(
        "--max-tokens",
        type=whole_number(1, 2**20),
        metavar="N",
        help="maximum length of the answer (default: the model's recipe)",
    )
    add_model_options(parser)
    add_task(parser, "questions")


def run(args: Namespace) -> int:
    """Print the answer."""
    refuse_untuned(args, "ask", "questions")
    claim_retrieved(args, Path())
    options = task_options(args) | ({} if args.template is None else {"template": args.template})
    model = open_model(args, num_candidates=1)
    report_unknown_words(model, [args.question])
    with progress_bar("answering", may_end_early=True) as progress:
        answer = model.ask(
            args.picture, args.question, max_tokens=args.max_tokens, progress=progress, **options
        )
    report_unlike_picture(model, args.picture, answer)
    print(printable(answer.text))
    show_choice(answer.choice)
    if args.show_retrieved:
        show_retrieved(answer.retrieved)
        write_retrieved(
            Path(),
            [
                Retrieval(
                    args.question, seen(args.picture, model), answer.retrieved, answer.text, None
                )
            ],
        )
    return 0
