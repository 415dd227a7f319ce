"""Codes of pictures: computed once, kept on disk, also after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3core.document import Text
from cm3core.errors import DataError
from cm3run.training.code_cache import CodeCache
from messages import tells
from numbered_documents import SERIALIZER, Numbers, Quadrants, make_data


def test_codes_are_computed_once(tmp_path: Path) -> None:
    source, first, second = Numbers(300), Quadrants(), Quadrants()
    cache = CodeCache(source, first, tmp_path, progress=False, shard_size=64)
    again = CodeCache(source, second, tmp_path, progress=False)
    assert (first.encoded, second.encoded) == (300, 0)
    for index in (0, 17, 299):
        assert again.codes(f"picture {index}") == cache.codes(f"picture {index}")
        assert cache.codes(f"picture {index}").codes.tolist() == [
            index // 256,
            index // 16 % 16,
            index % 16,
            7,
        ]
    assert cache.encoded(source.document(5)) == (Text("number 5"), cache.codes("picture 5"))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["rows.npy"]


def test_a_lock_that_is_a_link_leaves_what_it_names_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False).folder
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (folder / "rows.npy").unlink()
    (folder / "rows.npy.lock").symlink_to(precious)
    CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False)
    assert "rows.npy.lock is a link, a folder or a device" in capsys.readouterr().err
    assert precious.read_text() == "kept"


def test_other_pictures_have_another_folder(tmp_path: Path) -> None:
    assert (
        CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False).folder
        != CodeCache(Numbers(4), Quadrants(), tmp_path, progress=False).folder
    )


def test_broken_pictures_are_skipped_and_counted(tmp_path: Path) -> None:
    for _ in range(2):  # computed, then read
        cache = CodeCache(
            Numbers(10, broken=[3, 7]), Quadrants(), tmp_path, progress=False, shard_size=4
        )
        assert [(record.place, record.cause) for record in cache.skipped] == [
            ("n3.png", "is not a picture"),
            ("n7.png", "is not a picture"),
        ]
        assert "picture 3" not in cache
        assert not cache.usable(Numbers(10).document(7))
    data = make_data(tmp_path, 10, broken=[3, 7], random_num_retrieved=False)
    assert data.indices.tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    texts = [
        document[0]
        for index in range(len(data))
        for document in SERIALIZER.documents(data.sequence(0, index).tokens)
    ]
    assert not any(
        text in (Text("number 3"), Text("n 3"), Text("number 7"), Text("n 7")) for text in texts
    )


def test_only_pictures_of_the_chosen_documents_are_encoded(tmp_path: Path) -> None:
    source, tokenizer = Numbers(10, broken=[3, 7]), Quadrants()
    cache = CodeCache(source, tokenizer, tmp_path, progress=False, only=[2, 3, 5])
    assert (tokenizer.encoded, len(cache)) == (2, 3)
    assert cache.usable_N.nonzero()[0].tolist() == [2, 5]
    assert [record.place for record in cache.skipped] == ["n3.png"]
    assert "picture 4" not in cache
    whole = CodeCache(source, tokenizer, tmp_path, progress=False)
    assert whole.folder != cache.folder
    assert whole.codes("picture 5") == cache.codes("picture 5")
    every = CodeCache(source, tokenizer, tmp_path, progress=False, only=range(10))
    assert every.folder == whole.folder


def test_only_broken_pictures_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        CodeCache(Numbers(2, broken=[0, 1]), Quadrants(), tmp_path, progress=False)
    assert tells(caught.value, "n0.png: is not a ... the 2")


def test_damaged_rows_are_explained(tmp_path: Path) -> None:
    folder = CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False).folder
    whole = (folder / "rows.npy").read_bytes()
    for damaged in (b"", whole[:-3], b"\x80\x04N."):
        (folder / "rows.npy").write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged .*\n.*delete the folder"):
            CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False)


def encode_slowly(folder: str) -> None:
    """The killed process's work."""
    CodeCache(Numbers(40), Quadrants(seconds=0.05), Path(folder), progress=False, shard_size=4)


def test_shards_survive_sigkill(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_code_cache; "
        f"test_code_cache.encode_slowly({str(tmp_path)!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("codes/*/shard-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    tokenizer = Quadrants()
    cache = CodeCache(Numbers(40), tokenizer, tmp_path, progress=False, shard_size=4)
    assert 0 < tokenizer.encoded <= 28
    assert [cache.codes(f"picture {index}").codes[2] for index in range(40)] == [
        index % 16 for index in range(40)
    ]
