"""The command line of `cm3 eval`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import registry_of
from cm3apps.evaluation import card
from cm3apps.evaluation.run_options import run_options
from cm3core.errors import CM3Error

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3run.evaluation.protocol import Protocol
    from cm3run.model import Model

#: In the folder of an evaluation on the user's folder: its protocol, for other models.
FOLDER_PROTOCOL = "folder-protocol.json"
EXAMPLE = """examples:
  cm3 eval bundled:emoji64 emoji-comp-v1
  cm3 eval runs/mine my/pictures
  cm3 eval runs/mine mine.yaml
  cm3 eval runs/mine coco5k-v1 --data COCO --inception pt_inception-2015-12-05-6726825d.pth
  cm3 eval --from PICTURES coco30k-v1 --data COCO --inception FILE --label "another model"
  cm3 eval score PICTURES OTHERS --metric kid --extractor lite1
  cm3 eval runs/mine my/pictures --compare retriever=none,bm25,dense
  cm3 eval compare eval/a eval/b
  cm3 eval table eval/a --beside paper
  cm3 eval card bundled:emoji64 eval/emoji -o CARD.md
The same command resumes an interrupted evaluation."""
_BENCHMARKS = ("geneval", "geneval2", "dpg", "t2i-compbench", "wise", "imgedit", "gedit")
_PARTS = (
    "run",
    "score",
    "compare",
    "table",
    "card",
    "protocols",
    "show",
    "prompts",
    "export",
    "import",
)


class _WithRun:
    """`cm3 eval MODEL PROTOCOL` is short for `cm3 eval run MODEL PROTOCOL`."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parse = parser.parse_known_args

    def __call__(
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> Any:
        given = list(args or ())
        if given and given[0] not in (*_PARTS, "-h", "--help"):
            given = ["run", *given]
        return self._parse(given, namespace)


def configure(parser: ArgumentParser) -> None:
    """Add the sub-commands."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Generate by a protocol and score; every figure is printed with a hash of everything it depends on.\n"
        "`cm3 eval MODEL PROTOCOL` is short for `cm3 eval run MODEL PROTOCOL`."
    )
    parts = parser.add_subparsers(required=True, metavar="|".join(_PARTS))
    run_options(
        _part(parts, "run", "evaluate a model, or a folder of pictures, by a protocol", _run)
    )
    _configure_score(parts)
    _configure_stored(parts)
    card.configure(
        _part(parts, "card", "write a model's card from stored results, or check one", card.run)
    )
    _configure_protocols(parts)
    _configure_exchange(parts)
    parser.parse_known_args = _WithRun(parser)  # type: ignore[method-assign,assignment]  # of this parser


def _configure_score(parts: Any) -> None:
    one = _part(
        parts, "score", "score a folder of pictures against another, or a file of texts", _score
    )
    one.add_argument(
        "pictures",
        type=Path,
        metavar="FOLDER",
        help='pictures; or a file of lines {"text": ..., "references": [...]}',
    )
    one.add_argument(
        "reference", nargs="?", type=Path, metavar="OTHERS", help="folder of reference pictures"
    )
    one.add_argument(
        "--metric", required=True, metavar="NAME", help="a metric: cm3 describe metric"
    )
    one.add_argument("--extractor", metavar="NAME", help="an extractor: cm3 describe extractor")
    one.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.KEY=VALUE",
        help="change a key of the metric or extractor, e.g. metric.subset_size=200, "
        "extractor.path=FILE; may be given several times",
    )


def _configure_stored(parts: Any) -> None:
    """Add the actions on finished evaluations."""
    one = _part(
        parts, "compare", "show two evaluations side by side, if they measured the same", _compare
    )
    one.add_argument(
        "folders", nargs=2, type=Path, metavar="FOLDER", help="folder of an evaluation"
    )
    one = _part(
        parts, "table", "print the scores of evaluations, or published FIDs beside them", _table
    )
    one.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folder of an evaluation"
    )
    one.add_argument(
        "--beside", choices=["paper"], help="compare with published zero-shot FIDs on COCO"
    )


def _configure_protocols(parts: Any) -> None:
    """Add the actions that show protocols."""
    _part(parts, "protocols", "list the protocols that come with cm3leon", _protocols)
    one = _part(
        parts, "show", "check a protocol, shipped or a file, and print what it measures", _show
    )
    one.add_argument(
        "protocol", metavar="PROTOCOL", help="a name of `cm3 eval protocols`, or a file"
    )
    one.add_argument(
        "--json",
        action="store_true",
        help="print the protocol's file and its hash, as a starting point for your own",
    )
    one = _part(
        parts,
        "prompts",
        "print a protocol's samples: number, key and prompt, as JSON lines",
        _prompts,
    )
    _task_options(one)


def _configure_exchange(parts: Any) -> None:
    """Add the actions for other benchmarks' files."""
    one = _part(
        parts, "export", "write pictures and prompts in another benchmark's format", _export
    )
    one.add_argument(
        "what",
        choices=[*_BENCHMARKS, "adm-npz", "hub"],
        help="the benchmark",
    )
    one.add_argument("folder", type=Path, metavar="FOLDER", help="folder of an evaluation")
    one.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="output folder; for adm-npz and hub a file",
    )
    one.add_argument(
        "--data", type=Path, metavar="FOLDER", help="for gedit: the folder of the benchmark's files"
    )
    one = _part(parts, "import", "print the scores from another benchmark's own scorer", _import)
    one.add_argument(
        "what",
        choices=[*_BENCHMARKS, "adm"],
        help="the benchmark",
    )
    one.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="the scorer's file or printed output; for wise and gedit, also the folder of its files",
    )


def _part(parts: Any, name: str, text: str, run: Any) -> ArgumentParser:
    parser: ArgumentParser = parts.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _task_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "protocol", metavar="PROTOCOL", help="a name of `cm3 eval protocols`, or a file"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of the protocol's files (COCO)"
    )


def _run(args: Namespace) -> int:
    from cm3apps.evaluation.evaluating import claim_results
    from cm3apps.evaluation.own_folder import folder_protocol, is_recipe, without_held_out
    from cm3apps.evaluation.reading import lines
    from cm3core.files import write_text

    _check_names(args)
    if args.out is not None:
        claim_results(args.out)
    folder, registry = Path(args.names[-1]), registry_of(args)
    named = None if folder.is_dir() or is_recipe(folder) else _named_protocol(args)
    model = None if args.pictures else _model_of(args, registry)
    if model is not None:
        registry = model.components.registry  # with the trusted plugin files of the checkpoint
        if named is None and args.bank is None and args.memory_split is None:
            model = without_held_out(model, folder)
    protocol = named or folder_protocol(folder, registry, model, args.num)
    label = args.label or (args.pictures.name if args.pictures else args.names[0])
    out = args.out or Path("eval") / f"{protocol.name}-{_slug(label)}"
    try:
        if args.compare is None:
            scores = _evaluated(args, protocol, registry, model, _options(args), label, out)
            print("\n".join(lines(scores)))
            print(f"{out}/scores.json")
        else:
            _compare_settings(args, protocol, registry, model, label, out)
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes, see {out}", file=sys.stderr)
        return 130
    if named is None:
        write_text(out / FOLDER_PROTOCOL, protocol.text())
        print(
            f"evaluate another model alike: cm3 eval MODEL {shlex.quote(str(out / FOLDER_PROTOCOL))}"
        )
    return 0


def _evaluated(
    args: Namespace,
    protocol: Protocol,
    registry: Registry,
    model: Model | None,
    options: dict[str, Any],
    label: str,
    out: Path,
) -> dict[str, Any]:
    """Run or resume one evaluation; return the content of scores.json."""
    from cm3apps.evaluation.evaluating import Evaluation
    from cm3apps.evaluation.tasks import open_task

    return Evaluation(
        protocol,
        open_task(
            protocol.task,
            size=protocol.size,
            data=args.data,
            model=model,
            registry=registry,
            writer=protocol.writer,
        ),
        registry,
        out,
        model=model,
        options=options,
        pictures=args.pictures,
        label=label,
        files=_files(args),
        skip_missing=args.skip_missing,
        allow_leaks=args.allow_leaks,
        allow_reranker=args.allow_reranker,
    ).run()


def _compare_settings(
    args: Namespace,
    protocol: Protocol,
    registry: Registry,
    model: Model | None,
    label: str,
    out: Path,
) -> None:
    """Evaluate one model with each value of a setting, and print the paired differences from the first."""
    from cm3apps.evaluation.pairs import COMPARISON, paired_table, write_comparison

    if model is None:
        raise CM3Error(
            "--compare", "changes how a model draws, but --from gives pictures", "name a MODEL"
        )
    key, values = args.compare
    folders: dict[str, Path] = {}
    for value in values:
        options, own = _options(args), model
        if key == "retriever":
            own = model.with_memory(retriever=value)
            if own.recipe.retriever is not None and not own.recipe.retriever.retrieves:
                options.pop("num_retrieved", None)
        else:
            options[key] = value
        print(f"{key}={value}", file=sys.stderr)
        folders[str(value)] = out / _slug(f"{key}-{value}")
        _evaluated(
            args, protocol, registry, own, options, f"{label}, {key}={value}", folders[str(value)]
        )
    print("\n".join(paired_table(key, folders)))
    write_comparison(key, folders, out / COMPARISON)
    print(out / COMPARISON)


def _named_protocol(args: Namespace) -> Protocol:
    from cm3apps.evaluation.shipped import find_protocol, shortened

    protocol = find_protocol(args.names[-1])
    return protocol if args.num is None else shortened(protocol, args.num)


def _check_names(args: Namespace) -> None:
    """Refuse a wrong number of names, and pictures that don't exist."""
    wanted = 1 if args.pictures else 2
    if len(args.names) != wanted:
        raise CM3Error(
            "cm3 eval run",
            f"{len(args.names)} names are given",
            "give PROTOCOL alone with --from"
            if args.pictures
            else "give MODEL and PROTOCOL, FOLDER or RECIPE",
        )
    if args.pictures is not None and not args.pictures.is_dir():
        raise CM3Error(str(args.pictures), "is not a folder", "name the folder of the pictures")


def _model_of(args: Namespace, registry: Registry) -> Model:
    """The model to evaluate, with the memory for its retrieval."""
    from cm3run.model import load

    model = load(
        args.names[0],
        registry=registry,
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        trust_plugins=args.trust_plugins,
    )
    model.told = lambda line: print(f"note: {line}", file=sys.stderr)
    if args.bank is None and args.retriever is None and args.memory_split is None:
        return model
    return model.with_memory(args.bank, args.retriever, split=args.memory_split)


def _options(args: Namespace) -> dict[str, Any]:
    options = {
        "num_retrieved": args.num_retrieved,
        "num_candidates": args.num_candidates,
        "reranker": args.rerank,
        "sampler": args.sampler,
        "guidance_scale": args.guidance_scale,
        "temperature": args.temperature,
    }
    return {key: value for key, value in options.items() if value is not None}


def _files(args: Namespace) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    if args.inception is not None:
        files["inception"] = {"path": str(args.inception)}
        if args.inception_sha256 is not None:
            files["inception"]["sha256"] = args.inception_sha256
    if args.clip is not None:
        files["by_embedder"] = {"embedder": {"name": "clip", "path": str(args.clip)}}
    return files


def _slug(text: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)
    return kept.strip("-.")[-60:] or "model"


def _score(args: Namespace) -> int:
    from cm3apps.evaluation.adhoc import score_files
    from cm3apps.evaluation.reading import aligned

    print("\n".join(aligned(score_files(args, registry_of(args)))))
    return 0


def _compare(args: Namespace) -> int:
    from cm3apps.evaluation.pairs import paired_table
    from cm3apps.evaluation.reading import compare, read_scores

    print("\n".join(compare(*map(read_scores, args.folders))))
    first, second = args.folders
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    folders = dict(zip(names, args.folders, strict=True))
    paired = paired_table("evaluation", folders, only_paired=True)
    if paired:
        print("\n".join(["", *paired]))
    return 0


def _table(args: Namespace) -> int:
    from cm3apps.evaluation.reading import beside_paper, lines, read_scores

    evaluations = [read_scores(folder) for folder in args.folders]
    if args.beside is None and not evaluations:
        raise CM3Error(
            "cm3 eval table", "no evaluation is named", "name folders, or --beside paper"
        )
    if args.beside is not None:
        print("\n".join(beside_paper(evaluations)))
        return 0
    for scores in evaluations:
        print("\n".join([f"{scores['model']['name']}:", *lines(scores)]))
    return 0


def _protocols(args: Namespace) -> int:
    from cm3apps.evaluation.reading import aligned
    from cm3apps.evaluation.shipped import find_protocol, shipped
    from cm3run.evaluation.protocol import SHOWN

    found = [find_protocol(name) for name in shipped()]
    print("\n".join(aligned([(one.name, one.sha256[:SHOWN], one.title) for one in found])))
    return 0


def _show(args: Namespace) -> int:
    from cm3apps.evaluation.shipped import find_protocol, told

    protocol = find_protocol(args.protocol)
    lines = told(protocol, registry_of(args))  # also checks it
    print(protocol.text().rstrip() if args.json else "\n".join(lines))
    return 0


def _prompts(args: Namespace) -> int:
    import json

    from cm3apps.evaluation.shipped import find_protocol
    from cm3apps.evaluation.tasks import open_task

    protocol, registry = find_protocol(args.protocol), registry_of(args)
    task = open_task(
        protocol.task,
        size=protocol.size,
        data=args.data,
        model=None,
        registry=registry,
        writer=protocol.writer,
    )
    for index, sample in enumerate(task.samples):
        print(json.dumps({"index": index, "key": sample.key, "prompt": sample.prompt}))
    return 0


def _export(args: Namespace) -> int:
    from cm3apps.evaluation.exchange import export

    print(export(args.what, args.folder, args.out, args.data))
    return 0


def _import(args: Namespace) -> int:
    from cm3apps.evaluation.reading import aligned
    from cm3apps.evaluation.scorers import import_scores

    found = import_scores(args.what, args.file)
    print("\n".join(aligned([(one.name, f"{one.value:.6g}", one.counted) for one in found])))
    return 0
