"""Run what the README shows with an installed cm3leon, outside of the checkout.

python .ci/readme.py README.md FOLDER_OF_COMMANDS EMPTY_FOLDER

Left out are what installs, serves or trains, and what draws and embeds all pictures of the memory first, which takes
minutes: they have tests of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

#: Commands that are left out, and lines of Python that are.
LONG = ("quickstart", "start", "train", "eval", "export", "ask", "serve")
LONG_LINE = "caption"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[str]:
    """The shell commands and Python programs of a page that are run, in its order.

    >>> examples("```bash\\ncm3 train x\\ncm3 generate x\\npip install x\\n```\\n```python\\nx = 1\\ny.caption(x)\\n```\\n")
    ['cm3 generate x', 'x = 1\\n']
    """
    found = []
    for match in BLOCK.finditer(page):
        lines = match[2].splitlines(keepends=True)
        if match[1] == "python":
            found.append("".join(line for line in lines if LONG_LINE not in line))
        else:
            words = [line.split("#")[0].split("&&")[0].strip() for line in lines]
            found += [one for one in words if one.startswith("cm3 ") and one.split()[1] not in LONG]
    return found


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
    runs = examples(page.read_text(encoding="utf-8"))
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
