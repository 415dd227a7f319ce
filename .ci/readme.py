"""Run what the README shows with an installed cm3leon, outside of the checkout.

python .ci/readme.py README.md FOLDER_OF_COMMANDS EMPTY_FOLDER

Left out are what installs, serves, trains for minutes or is refused, and what the other distributions bring: they have tests of
their own. A block below `<!-- file: NAME -->` is written to that file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

#: Commands that are left out.
LONG = ("quickstart", "start", "serve", "bench")
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FILE = "file: "


def examples(page: str) -> list[str]:
    """The shell commands and Python programs of a page that are run, in its order.

    >>> examples("```bash\\ncm3 serve x\\ncm3 generate x\\npip install x\\n```\\n```python\\nx = 1\\n```\\n")
    ['cm3 generate x', 'x = 1\\n']
    """
    found = []
    for match in BLOCK.finditer(page):
        mark = match["mark"] or ""
        if mark == "fails" or mark.startswith(FILE):
            continue
        if match["language"] == "python":
            found.append(match["text"])
        else:
            lines = match["text"].splitlines()
            words = [line.split("#")[0].split("&&")[0].strip() for line in lines]
            found += [one for one in words if one.startswith("cm3 ") and one.split()[1] not in LONG]
    return found


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name.

    >>> files("<!-- file: a.py -->\\n```python\\nx = 1\\n```\\n")
    {'a.py': 'x = 1\\n'}
    """
    return {
        match["mark"].removeprefix(FILE): match["text"]
        for match in BLOCK.finditer(page)
        if (match["mark"] or "").startswith(FILE)
    }


def main(page: Path, commands: Path, folder: Path) -> None:
    """Run all, with a cache of their own; raises `CalledProcessError` for the first that fails."""
    environ = {
        "PATH": f"{commands}:/usr/bin:/bin",
        "HOME": str(folder),
        "CM3_CACHE": str(folder / "cache"),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    environ |= {key: os.environ[key] for key in ("OMP_NUM_THREADS", "LANG") if key in os.environ}
    text = page.read_text(encoding="utf-8")
    for name, content in files(text).items():
        (folder / name).write_text(content, encoding="utf-8")
    runs = examples(text)
    if len(runs) < 5:
        raise SystemExit(f"{page}: {len(runs)} examples, fewer than there were")
    for one in runs:
        shell = one.startswith("cm3 ")
        print(f"$ {one if shell else 'python'}", flush=True)
        command = ["bash", "-ec", one] if shell else [str(commands / "python"), "-c", one]
        subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    written = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))
    print(f"{len(written)} pictures: {', '.join(written[:3])}, ...")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute(), Path(sys.argv[3]))
