"""Protocols: canonical form, hash, edited and damaged files; which keys differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError, PluginError, RecipeError
from cm3core.plugins import load_registry
from cm3run.evaluation.protocol import (
    canonical,
    differences,
    measurement_hash,
    protocol_of,
    read_protocol,
    score_configs,
)
from messages import tells

VALUES: dict[str, Any] = {
    "format": "cm3 protocol 1",
    "name": "mine-v1",
    "title": "mine",
    "task": {"name": "documents", "num": 2},
    "size": 64,
    "seed": 7,
    "scores": [{"metric": {"name": "psnr"}}],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda own: st.lists(own) | st.dictionaries(st.text(), own),
)


@given(JSON)
def test_canonical_json_is_json_in_one_form(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text
    assert text.isascii()


def test_a_protocol_states_its_hash(tmp_path: Path) -> None:
    protocol = protocol_of(VALUES, "x")
    path = tmp_path / "mine.json"
    path.write_text(protocol.text(), encoding="utf-8")
    assert read_protocol(path) == protocol
    assert json.loads(protocol.text())["sha256"] == protocol.sha256
    reordered = dict(reversed(VALUES.items()))
    assert protocol_of(reordered, "x").sha256 == protocol.sha256
    assert protocol_of({**VALUES, "seed": 8}, "x").sha256 != protocol.sha256


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        protocol_of(VALUES, "x").text().replace('"seed": 7', '"seed": 8'), encoding="utf-8"
    )
    with pytest.raises(DataError) as caught:
        read_protocol(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: was edited: its content has the sha256 ")
    assert tells(message, "... give it another name and remove")


WRONG = [
    ([], "is not of the format 'cm3 protocol 1'"),
    ({**VALUES, "format": "x"}, "is not of the format"),
    ({**VALUES, "more": 1}, "has the unknown key 'more'"),
    ({key: value for key, value in VALUES.items() if key != "task"}, "has no key 'task'"),
    ({**VALUES, "name": "My Protocol"}, "x: name: must be a word of a-z"),
    ({**VALUES, "size": 1}, "x: size: must be null or 8 to 4096"),
    ({**VALUES, "size": True}, "x: size: must be"),
    ({**VALUES, "seed": -1}, "x: seed: must be a whole number"),
    ({**VALUES, "task": {}}, 'x: task: must be an object with a "name"'),
    ({**VALUES, "scores": {}}, "x: scores: must be a list"),
    ({**VALUES, "scores": [{"metric": {"name": "kid"}, "x": {"name": "y"}}]}, "x: scores: must be"),
    ({**VALUES, "title": None}, "x: title: must be a text"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_no_protocol(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        protocol_of(values, "x")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_protocol(tmp_path / "none.json")
    path = tmp_path / "a.json"
    for damaged, cause in (("{", "is not JSON"), ("[" * 100_000, "is nested deeper than 64")):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match=cause):
            read_protocol(path)


def test_scores_are_components() -> None:
    registry = load_registry()
    score = {"metric": {"name": "kid", "subset_size": 7}, "extractor": {"name": "pixels"}}
    metric, extractor = score_configs(score, registry, "x")
    assert metric.protocol() == {"version": 1, "num_subsets": 100, "subset_size": 7, "seed": 2020}
    assert extractor is not None
    for wrong, error in (
        ({"metric": {"name": "kdi"}}, PluginError),
        ({"metric": {"name": "kid", "subset": 7}}, RecipeError),
        ({"metric": {"name": "kid", "subset_size": 1}}, RecipeError),
    ):
        with pytest.raises(error):
            score_configs(wrong, registry, "x")
    with pytest.raises(PluginError, match=r"scores 3: metric\.name: no metric is called 'kdi'"):
        score_configs({"metric": {"name": "kdi"}}, registry, "scores 3")


def test_a_measurement_hash_depends_on_all() -> None:
    first = measurement_hash({"num": 3}, {"metric": {"name": "kid"}})
    assert len(first) == 12
    assert first != measurement_hash({"num": 4}, {"metric": {"name": "kid"}})
    assert first != measurement_hash({"num": 3}, {"metric": {"name": "fid"}})


def test_differences_are_dotted_keys() -> None:
    assert differences({}, {}) == {}
    assert differences({"a": 1}, {"a": 1.5, "b": {}}) == {"a": (1, 1.5), "b": ("(absent)", {})}
