"""`cm3 plugin check` where temporary files find no room."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from messages import tells
from small_disk import leave_room, small_disk
from squares import PARTS


def test_a_full_disk_is_not_the_plugins_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        leave_room(disk, 4)  # the request's; not what the process answers
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        assert main(["plugin", "check", str(PARTS / "train_parts.py"), "--quick"]) == 2
        assert tells(
            capsys.readouterr().err, f"error: {disk}: can't be written (No space left ... TMPDIR"
        )
