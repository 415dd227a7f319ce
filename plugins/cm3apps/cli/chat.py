"""`cm3 chat`: converse with a model in text and pictures."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import INPUT, MODEL, OUTPUT, RESULTS, grouped, whole_number
from cm3apps.cli._model import refuse_untuned
from cm3apps.cli.opening import add_loading_options, open_model, settings_of
from cm3core.errors import CM3Error
from cm3core.files import check_not_input, held_folder
from cm3core.outputs import OutputFolder, claim_file

if TYPE_CHECKING:
    from cm3apps.cli._chat_loop import Replies
    from cm3run.model import Conversation

HELP = "converse with a model in text and pictures"
EXAMPLE = """  cm3 chat --model anole -o talk/
  cm3 chat --model anole --message "What is in the picture?" --image photo.png
  cm3 chat --model anole --message "Draw a red bell, then describe it." --json -o talk/
  cm3 chat --model anole --conversations questions.jsonl -o answers/
Without --message and --conversations it reads lines: messages, or commands such as /image FILE;
/help lists them."""


def configure(parser: ArgumentParser) -> None:
    """Add the message, the kind of reply, and the options."""
    _add_conversation(parser)
    _add_replies(parser)
    add_loading_options(parser)
    parser.set_defaults(bank=None, retriever=None)


def _add_conversation(parser: ArgumentParser) -> None:
    """What is said, and what the model was tuned for."""
    grouped(parser, INPUT).add_argument(
        "--message", metavar="TEXT", help="send this message, print the reply and exit"
    )
    grouped(parser, INPUT).add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        dest="images",
        metavar="FILE",
        help="send this picture with the message, or with the first one; may be given several "
        "times",
    )
    grouped(parser, INPUT).add_argument(
        "--conversations",
        type=Path,
        metavar="FILE",
        help="reply to each conversation of a JSON Lines file and write replies.jsonl; the "
        "same command resumes after an interruption",
    )
    grouped(parser, INPUT).add_argument(
        "--load", type=Path, metavar="FILE", help="continue a saved conversation"
    )
    grouped(parser, MODEL).add_argument(
        "--force",
        action="store_true",
        help="run even if the model was not tuned for conversations; its replies are then "
        "meaningless",
    )


def _add_replies(parser: ArgumentParser) -> None:
    """Replies, and where they go."""
    grouped(parser, RESULTS).add_argument(
        "--answer",
        choices=["any", "text", "image"],
        default="any",
        help="kind of reply: the model's choice, text without pictures, or a picture "
        "(default: %(default)s)",
    )
    grouped(parser, RESULTS).add_argument(
        "--max-tokens",
        type=whole_number(1, 2**20),
        metavar="N",
        help="maximum length of a reply's texts (default: the model's recipe)",
    )
    grouped(parser, RESULTS).add_argument(
        "--max-pictures",
        type=whole_number(0, 1000),
        default=4,
        metavar="N",
        help="maximum number of pictures in a reply (default: %(default)s)",
    )
    grouped(parser, OUTPUT).add_argument(
        "--json",
        action="store_true",
        help="print the finished reply to --message as JSON",
    )
    grouped(parser, OUTPUT).add_argument(
        "--save", type=Path, metavar="FILE", help="save the conversation at the end (JSON)"
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-out"),
        metavar="FOLDER",
        help="folder for the pictures of replies, chat-000.png, chat-001.png, ...; existing "
        "files are kept (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    """Converse, and print texts and the paths of pictures."""
    _check(args)
    refuse_untuned(args, "chat", "conversations")
    if args.save is not None:
        check_not_input(args.save, *args.images)
        claim_file(args.save)
    from cm3apps.cli._chat_batch import names_of_replies

    names = [] if args.conversations is None else names_of_replies(args)
    OutputFolder(args.out, *names)
    busy = CM3Error(
        str(args.out),
        "another process is generating into this folder",
        "wait for it, or name another folder (-o)",
    )
    with held_folder(args.out, busy):
        return _run(args)


def _check(args: Namespace) -> None:
    """Refuse options that contradict each other."""
    several = args.conversations is not None
    given = {
        "--message": args.message is not None,
        "--image": bool(args.images),
        "--load": args.load is not None,
        "--save": args.save is not None,
    }
    for name, is_given in given.items():
        if several and is_given:
            raise CM3Error(
                f"cm3 chat {name}",
                "is for one conversation, but --conversations gives several",
                "leave one of the two out",
            )
    if args.json and args.message is None:
        raise CM3Error("cm3 chat --json", "needs --message", "give --message")


def reply_options(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of `Model.chat`."""
    return {
        "answer": args.answer,
        "max_tokens": args.max_tokens,
        "max_pictures": args.max_pictures,
        "truncate": True,
        "force": args.force,
        "sampler": args.sampler,
    } | settings_of(args.settings, "sampler")


def _run(args: Namespace) -> int:
    from cm3apps.cli._chat_files import read_conversation
    from cm3apps.cli._chat_loop import Replies
    from cm3run.model import Conversation

    turns, files = (None, {}) if args.load is None else read_conversation(args.load)
    model = open_model(args)
    replies = Replies(args, model)
    replies.files |= files
    if args.conversations is not None:
        from cm3apps.cli._chat_batch import reply_to_all

        model.check_converses(force=args.force)
        return reply_to_all(args, model, replies, reply_options(args))
    talk = Conversation(model, turns, seed=args.seed, **reply_options(args))
    if args.message is None:
        from cm3apps.cli._chat_loop import Loop

        code = Loop(args, talk, replies).run()
    else:
        code = _one(args, talk, replies)
    if args.save is not None:
        from cm3apps.cli._chat_files import write_conversation

        write_conversation(args.save, talk.turns, replies.files)
        print(args.save, file=sys.stderr)
    return code


def _one(args: Namespace, talk: Conversation, replies: Replies) -> int:
    """Send the message and print the reply."""
    number = len(talk.turns)
    if args.json:
        reply = talk.say(args.message, *args.images)
        content = replies.content(reply.parts, args.message)
        facts = {
            "finish": reply.finish,
            "seed": reply.seed,
            "turns_read": reply.turns_read,
            "turns_left_out": reply.turns_left_out,
            "model": replies.model.name,
        }
        print(json.dumps({"content": content} | facts, ensure_ascii=False))
        return 0
    try:
        replies.show(talk.stream(args.message, *args.images), args.message)
    except KeyboardInterrupt:
        del talk.turns[number:]
        print("interrupted", file=sys.stderr)
        return 130
    return 0
