"""Whatever values annotations have, a data set is built or a `CM3Error` raised, and nothing is lost."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import draw_formats
from cm3core.document import Image
from cm3core.errors import CM3Error, DataError
from cm3plugins.datasets.coco import COCOConfig
from cm3plugins.datasets.conversations import ConversationsConfig
from cm3plugins.datasets.picture_pairs import PicturePairsConfig
from cm3plugins.datasets.vqa import VQAConfig

#: What each test replaces values in, and how the data set is read, below the folder of formats.
CASES: dict[str, tuple[str, Any, dict[str, str]]] = {
    "seeds": (
        "instruct_pix2pix/seeds.json",
        PicturePairsConfig,
        {"format": "instruct_pix2pix", "path": "instruct_pix2pix"},
    ),
    "turns": (
        "magicbrush/folder/edit_turns.json",
        PicturePairsConfig,
        {"format": "magicbrush", "path": "magicbrush/folder"},
    ),
    "llava": (
        "llava/llava.json",
        ConversationsConfig,
        {"turns": "each", "path": "llava/llava.json", "pictures": "llava/images"},
    ),
    "lumina": (
        "llava/lumina.json",
        ConversationsConfig,
        {"path": "llava/lumina.json", "pictures": "llava/images"},
    ),
    "questions": (
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
        VQAConfig,
        {
            "path": "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
            "answers": "vqa/v2_mscoco_val2014_annotations.json",
            "pictures": "vqa/val2014",
        },
    ),
    "answers": (
        "vqa/v2_mscoco_val2014_annotations.json",
        VQAConfig,
        {
            "path": "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
            "answers": "vqa/v2_mscoco_val2014_annotations.json",
            "pictures": "vqa/val2014",
        },
    ),
}
for form, file in (
    ("caption", "captions"),
    ("grounding", "instances"),
    ("objects", "instances"),
    ("segmentation", "instances"),
    ("segmentation", "panoptic"),
    ("pose", "person_keypoints"),
):
    annotated = f"coco/annotations/{file}_val2017.json"
    keys = {"form": form, "path": annotated, "pictures": "coco/val2017"}
    CASES[f"{form}-{file}"] = (annotated, COCOConfig, keys)
FOLDERS = ("path", "answers", "pictures")

values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 139, 10**400, 1e400, float("nan"), 1e308, "", " ", "../x", "/"])
    | st.sampled_from(["red.jpg", "\0", "\ud800", "http://x/a.png", "human", "<image>", "x" * 300])
    | st.integers()
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    shutil.copytree(draw_formats.FORMATS, folder / "formats")
    return folder / "formats"


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            found += places(inner)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere(case: str, root: Path, data: st.DataObject) -> None:
    file, config, keys = CASES[case]
    true = json.loads((draw_formats.FORMATS / file).read_text())
    changed = copy.deepcopy(true)
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(places(changed)))
        if data.draw(st.booleans()) and isinstance(container, dict):
            del container[key]
        else:
            container[key] = data.draw(values)
        if not changed:
            break
    (root / file).write_text(json.dumps(changed))
    try:
        given_keys = {
            key: str(root / value) if key in FOLDERS else value for key, value in keys.items()
        }
        try:
            source = config(**given_keys, split="all").build()
        except CM3Error as error:
            assert all((error.place, error.next_step))  # noqa: PT017  # either is right
            return
        for one in source.skipped:
            assert str(root) in one.place or one.place.isascii()
            assert one.cause
            assert one.next_step
            print(one.place.encode(), one.cause.encode(), one.next_step.encode())
        for index in range(len(source)):
            for segment in source.document(index):
                if isinstance(segment, Image):
                    with contextlib.suppress(DataError):
                        assert segment.load().dtype == "uint8"
                else:
                    assert segment.text.encode()
            assert source.provenance(index).licence.encode()
    finally:
        (root / file).write_text(json.dumps(true))
