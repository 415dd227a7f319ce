"""The notebook of the examples: every cell runs, as IPython runs it, and what should be seen is seen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[3] / "examples" / "notebook.ipynb"
#: Runs each source of a JSON list; prints what each cell shows, by media type, or its error.
RUNNER = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

shell, shown = InteractiveShell.instance(), []
for source in json.load(sys.stdin):
    with capture_output() as captured:
        result = shell.run_cell(source)
    if not result.success:
        shown.append({"error": repr(result.error_before_exec or result.error_in_exec)})
        break
    shown.append({} if result.result is None else
                 {kind: str(text)[:200] for kind, text in shell.display_formatter.format(result.result)[0].items()})
print(json.dumps(shown))
"""


def sources() -> list[str]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("IPython") is None, reason="the package ipython is not installed")
def test_every_cell_runs_and_shows_its_picture(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources()),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "IPYTHONDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert not any("error" in one for one in shown), shown
    pictures = ["image/png" in one for one in shown]
    assert pictures == [True, True, True, True, False, True, False, True]
    assert "'frobnicated': None" in shown[4]["text/plain"]
    assert re.fullmatch(r"'\w[\w ,]+'", shown[6]["text/plain"])
