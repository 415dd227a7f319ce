"""What a sweep measures, if the user names no protocol: the loss of held-out documents, and, if cells differ in what only
generation uses, pictures drawn of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cm3apps.evaluation.evaluating import MISSING
from cm3apps.evaluation.measured import OF_RESULTS, needed
from cm3apps.evaluation.own_folder import num_groups
from cm3apps.evaluation.shipped import find_protocol, shortened, told
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.documents import apart
from cm3apps.quickstart.judged import declared, drawn_scores, splits_of
from cm3apps.sweep.plan import Plan, check_life
from cm3core.config.schema import to_plain
from cm3core.errors import DataError
from cm3run.evaluation.protocol import Protocol, score_configs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cm3core.interfaces import DocumentSourceConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: Most documents that are measured, unless the user says otherwise.
NUM = 200


def protocol_for(plan: Plan, named: str | None, num: int | None, registry: Registry) -> Protocol:
    """The protocol of a sweep.

    Args:
        plan: the cells.
        named: the name or file that the user gave; None: the default.
        num: its first samples; None: all, or `NUM` of the default.

    Raises:
        CM3Error: there is none, or it would measure the same of two cells.
    """
    if named is None:
        if plan.shares_weights():
            check_life(plan, "generate", registry)
        return _default(plan, num)
    protocol = find_protocol(named)
    protocol = protocol if num is None else shortened(protocol, num)
    told(protocol, registry)  # checks it
    _check_files(protocol)
    same, draws = plan.drawn_differently(), _draws(protocol, registry)
    if draws:
        check_life(plan, "generate", registry)
    elif same is not None:
        raise DataError(
            f"protocol {protocol.name}",
            f"draws nothing, but {same[0].cell.label!r} and {same[1].cell.label!r} differ only in how pictures are drawn",
            "name a protocol that draws, or leave --protocol out",
        )
    return protocol


def check_cases(protocol: Protocol, data: Path | None, registry: Registry) -> None:
    """Open the cases before anything is trained, unless they are of each cell's own data set.

    Raises:
        DataError: files are missing, or there are too few cases.
    """
    if protocol.task["name"] == "documents" and protocol.task.get("dataset") is None:
        return
    open_task(
        protocol.task,
        size=protocol.size,
        data=data,
        model=None,
        registry=registry,
        writer=protocol.writer,
    )


def _draws(protocol: Protocol, registry: Registry) -> bool:
    """Whether results are generated, and not only likelihoods computed."""
    place = f"protocol {protocol.name}"
    configs = [
        score_configs({"metric": score["metric"]}, registry, place, protocol.writer)[0]
        for score in protocol.scores
    ]
    return not configs or bool(needed([one.build() for one in configs]) & OF_RESULTS)


def _check_files(protocol: Protocol) -> None:
    """Refuse a protocol whose networks are files of the user."""
    for score in protocol.scores:
        name = str(score.get("extractor", {}).get("name"))
        if name in MISSING and "path" not in score["extractor"]:
            raise DataError(
                f"protocol {protocol.name}",
                f"measures with the network {name!r}, whose file isn't named",
                f"write its path into a protocol of your own (cm3 eval show {protocol.name} --json)",
            )


def _default(plan: Plan, num: int | None) -> Protocol:
    recipe = plan.runs[0].recipe
    config = recipe.dataset
    assert config is not None  # as was checked
    assert recipe.image_tokenizer is not None
    split = _split(recipe, config)
    held, is_apart = replace(config, split=split).build(), not declared(config)
    own = apart(held, replace(config, split="train").build()) if is_apart else None
    if not (groups := num_groups(held, own)):
        raise DataError(
            f"split {split!r} of the recipe's data set",
            "has no document that isn't, or doesn't look like, one of the split train",
            "hold others out, or name a protocol (--protocol)",
        )
    number = min(groups, NUM if num is None else num)
    scores: list[Mapping[str, Any]] = []
    if not plan.only_draws_differently():
        scores.append({"metric": {"name": "held_out_loss"}})
    if plan.shares_weights():
        scores += [one for one in drawn_scores(config) if one["metric"]["name"] != "nats"]
    section = {key: value for key, value in to_plain(config).items() if key != "split"}
    return Protocol(
        f"held-out-{split}-{number}",
        f"{number} held-out documents of the split {split}",
        {
            "name": "documents",
            # named, so that all cells have the same cases whatever they train on
            "dataset": {"name": recipe.component_names["dataset"], **section},
            "split": split,
            "num": number,
            "apart": is_apart,
        },
        scores,
        size=max(recipe.image_tokenizer.image_size),
    )


def _split(recipe: Recipe, config: DocumentSourceConfig) -> str:
    """The split to measure: the first on which training is validated; else the first that the data set holds out."""
    for split in dict.fromkeys([*recipe.validation_splits, *splits_of(config)]):
        try:
            if split != config.split and len(replace(config, split=split).build()):
                return split
        except DataError:  # it has no such split, which training skips, too
            continue
    raise DataError(
        "the recipe's data set",
        "holds out no documents, on which cells could be compared",
        "hold some out (cm3 describe dataset), or name a protocol with its own (--protocol)",
    )
