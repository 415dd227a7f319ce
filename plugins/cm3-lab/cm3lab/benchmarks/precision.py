"""`cm3 bench precision`: effect of fewer bits per weight on a model's predictions, for real
documents.

Nothing is sampled: the decoder, prepared for inference in each precision, reads complete documents, and its prediction
at each position is compared with full precision. Legend: T tokens, E
width, R legal ids, n positions.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    add_device,
    add_trust,
    registry_of,
    whole_number,
)
from cm3core.errors import CM3Error

if TYPE_CHECKING:
    from torch import Tensor

    from cm3core.document import TokenSequence
    from cm3core.interfaces import InferenceDecoder
    from cm3run.model import Model

HELP = "effect of fewer bits per weight on a model's predictions"
EXAMPLE = """examples:
  cm3 bench precision
  cm3 bench precision --model runs/apples --num 64 --split comp -o precision.json"""
#: The limits: the largest increase in nats per image code that a precision may cause, and the smallest share of most
#: probable codes that it must leave unchanged where the model is sure
#: (its two best codes differ by more than `TORN` nats).
MOST_NATS, LEAST_AGREEMENT, TORN = 0.02, 0.99, 0.5


@dataclass(frozen=True)
class Quality:
    """One precision compared with full precision.

    Args:
        precision: its name.
        nats: mean negative log-probability of the documents' image codes.
        more: nats above full precision.
        agreement: share of positions at which the most probable code is the same.
        sure_agreement: the same, over positions at which full precision's best two codes differ by more
            than `TORN` nats.
        num: number of positions.
        passes: whether it is within the limits.
    """

    precision: str
    nats: float
    more: float
    agreement: float
    sure_agreement: float
    num: int

    @property
    def passes(self) -> bool:
        return self.more <= MOST_NATS and self.sure_agreement >= LEAST_AGREEMENT


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--model",
        default="bundled:emoji64",
        metavar="MODEL",
        help="see `cm3 generate` (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split of the model's data set (default: the one it was trained on)",
    )
    parser.add_argument(
        "--num",
        type=whole_number(1, 2**31 - 1),
        default=32,
        metavar="N",
        help="number of documents, evenly spread over the split (default: %(default)s)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    add_device(parser, "device for the model")
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Measure and print; returns 1 if a precision exceeds the limits."""
    import json
    from dataclasses import asdict

    from cm3core.files import write_text
    from cm3core.outputs import claim_file
    from cm3run.model import load

    if args.out is not None:
        claim_file(args.out)
    model = load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    found = measure(model, sequences(model, args.split, args.num))
    print(
        f"{'precision':<10} {'nats a code':>11} {'more':>8} {'same best code':>14} "
        f"{'where sure':>10}   of {found[0].num:,} "
        "codes"
    )
    for one in found:
        print(
            f"{one.precision:<10} {one.nats:>11.4f} {one.more:>+8.4f} {one.agreement:>14.2%} "
            f"{one.sure_agreement:>10.2%}   "
            f"{'passes' if one.passes else 'FAILS'}"
        )
    if args.out is not None:
        gate = {"most_nats": MOST_NATS, "least_agreement": LEAST_AGREEMENT, "torn": TORN}
        write_text(
            args.out,
            json.dumps(
                {
                    "model": args.model,
                    "split": args.split or "train",
                    "gate": gate,
                    "precisions": [asdict(one) | {"passes": one.passes} for one in found],
                },
                indent=1,
            )
            + "\n",
        )
        print(args.out)
    return int(not all(one.passes for one in found))


def sequences(model: Model, split: str | None, number: int) -> list[TokenSequence]:
    """Return documents spread evenly over the model's data set, in their training form: pictures as codes, nothing
    prepended."""
    from cm3run.training.validation import spread

    source = model.components.source if split is None else model.components.split(split)
    documents = [source.document(index) for index in spread(len(source), number)]
    return [
        model.components.serializer.sequence(
            model.coded(document), (), model.recipe.data.max_text_tokens
        )
        for document in documents
    ]


def measure(
    model: Model,
    some: Sequence[TokenSequence],
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
) -> list[Quality]:
    """Compare each precision with full precision (float32, which is also measured)."""
    import torch

    decoder = model.components.decoder
    full = decoder.for_inference("fp32")
    arranged = [
        full if precision == "fp32" else decoder.for_inference(precision)
        for precision in precisions
    ]
    sums = [[0.0, 0, 0] for _ in precisions]
    exact_nats, number, sure_number = 0.0, 0, 0
    with torch.inference_mode():
        for sequence in some:
            exact_nR, code_n = _said(full, model, sequence)
            best_n2 = exact_nR.topk(2).values
            sure_n = best_n2[:, 0] - best_n2[:, 1] > TORN
            exact_nats -= float(exact_nR.gather(1, code_n[:, None]).sum())
            number, sure_number = number + len(code_n), sure_number + int(sure_n.sum())
            for own, one in zip(sums, arranged, strict=True):
                said_nR, _ = _said(one, model, sequence)
                same_n = said_nR.argmax(1) == exact_nR.argmax(1)
                own[0] -= float(said_nR.gather(1, code_n[:, None]).sum())
                own[1] += int(same_n.sum())
                own[2] += int((same_n & sure_n).sum())
    if number == 0:
        raise CM3Error(
            "cm3 bench precision", "the documents have no pictures", "choose another split"
        )
    return [
        Quality(
            precision,
            nats / number,
            (nats - exact_nats) / number,
            same / number,
            sure / max(sure_number, 1),
            number,
        )
        for precision, (nats, same, sure) in zip(precisions, sums, strict=True)
    ]


def _said(
    decoder: InferenceDecoder, model: Model, sequence: TokenSequence
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [n, R] of all codes at the positions of a sequence's image codes, and the actual
    codes [n]."""
    import torch

    vocabulary = model.components.vocabulary
    tokens_1T, cells_1T = (
        torch.from_numpy(numbers.astype("int64"))[None]
        for numbers in (sequence.tokens, sequence.cells)
    )
    cache = decoder.allocate_cache(1, tokens_1T.shape[1])
    hidden_TE = decoder.hidden_states(tokens_1T, cells_BT=cells_1T, cache=cache)[0]
    places = (cells_1T[0] >= 0).nonzero()[:, 0]
    logits_nR = decoder.logits(hidden_TE[places - 1], vocabulary.image).float()
    return logits_nR.log_softmax(1), tokens_1T[0, places] - vocabulary.image.start
