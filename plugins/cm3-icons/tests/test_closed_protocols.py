"""Protocols of the closed splits of icons."""

from __future__ import annotations

import pytest

from cm3apps.evaluation.shipped import find_protocol
from cm3icons.data.closed import JUDGED
from cm3icons.data.corpus import IconEntry
from cm3icons.evaluation import style_classifier
from cm3icons.evaluation.icon_style_metric import HandConfig, IconStyleConfig


@pytest.mark.parametrize("split", JUDGED)
def test_each_closed_split_has_a_protocol(split: str) -> None:
    protocol = find_protocol(f"icons-{split}-closed-v1")
    assert protocol.task["split"] == split
    assert protocol.task["dataset"]["held_out"] == "closed"
    names = [score["metric"]["name"] for score in protocol.scores]
    assert {"judge", "hand", "copy"} <= set(names)
    assert "icon_style" not in names  # its network has seen these icons


def test_the_style_classifier_learns_from_what_is_no_test_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(style_classifier, "classifier_key", lambda real, size: real.corpus.held_out)
    by_name, closed = IconStyleConfig().protocol(), HandConfig().protocol()
    assert (by_name["classifier"], closed["classifier"]) == ("by_name", "closed")
    entries = [IconEntry(str(i), "a", "", (), split) for i, split in enumerate((*JUDGED, "near"))]
    assert style_classifier._chosen(entries, 9, True) == [len(JUDGED)]
    assert sorted(style_classifier._chosen(entries, 9, False)) == list(range(len(JUDGED)))
