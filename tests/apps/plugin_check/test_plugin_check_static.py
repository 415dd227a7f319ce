"""`cm3 plugin check --quick`: every way in which a plugin's source is wrong, in its words; each part is a
real process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from checked_plugins import GOOD, HEAD, WriteFile, lines_of
from cm3apps.cli.main import main

#: Source, and the lines that say what is wrong with it (the lines of what is in order are left
#: out).
STATIC: dict[str, tuple[str, str]] = {
    "a syntax error": (
        "def f(:\n",
        """\
FAIL  import: TMP/mine.py can't be imported: SyntaxError: invalid syntax (TMP/mine.py, line 1)
      next: correct the line
""",
    ),
    "an import that raises": (
        GOOD + "\nraise RuntimeError('two\\nlines')\n",
        f"""\
FAIL  import: TMP/mine.py can't be imported: RuntimeError: two
      | TMP/mine.py, line {GOOD.count(chr(10)) + 2}: raise RuntimeError('two\\nlines')
      next: correct the plugin
""",
    ),
    "a package that is missing": (
        "import no_such_package\n",
        """\
FAIL  import: TMP/mine.py can't be imported: ModuleNotFoundError: No module named 'no_such_package'
      | TMP/mine.py, line 1: import no_such_package
      next: install 'no_such_package' and add it to the plugin's dependencies, or correct the import
""",
    ),
    "sys.exit": (
        "import sys\nsys.exit(3)\n",
        """\
FAIL  import: TMP/mine.py can't be imported: SystemExit: 3
      | TMP/mine.py, line 2: sys.exit(3)
      next: importing a module must not exit the program
""",
    ),
    "os._exit": (
        "import os\nprint('good bye', flush=True)\nos._exit(7)\n",
        """\
FAIL  import: the process exited with code 7 while importing TMP/mine.py
      | good bye
      next: a plugin must not exit the program
""",
    ),
    "a crash": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
        """\
FAIL  import: the process was killed by SIGSEGV while importing TMP/mine.py
      next: run that step in a debugger (python -X faulthandler)
""",
    ),
    "a hang": (
        "import time\ntime.sleep(60)\n",
        """\
FAIL  import: importing TMP/mine.py took longer than 3 s and was killed
      next: find what it waits for, or raise --timeout
""",
    ),
    "no API version, and a hook that raises": (
        GOOD.replace("CM3_API = 1\n", "").replace('return {"ch', 'return 1 / 0, {"ch'),
        f"""\
FAIL  api: does not state CM3_API
      next: write `CM3_API = 1` in its module
FAIL  hooks cm3_text_tokenizers: ZeroDivisionError: division by zero
      | TMP/mine.py, line {GOOD.count(chr(10)) - 1}: return 1 / 0, {{"characters": CharactersConfig}}
      next: correct the plugin
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "a hook with an argument": (
        GOOD.replace("tokenizers():", "tokenizers(config):"),
        """\
FAIL  hooks: cm3_text_tokenizers takes 'config', which the hook does not have
      next: write def cm3_text_tokenizers()
""",
    ),
    "a hook that does not exist": (
        GOOD.replace("def cm3_text_tokenizers", "def cm3_text_tokenizer"),
        """\
FAIL  hooks: implements the hook 'cm3_text_tokenizer', which does not exist
      next: did you mean 'cm3_text_tokenizers'?
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "no hook": (
        HEAD,
        """\
FAIL  hooks: it implements no hooks, so it provides nothing
      next: implement one of the hooks of cm3core.hookspecs, decorated with @hookimpl
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "a default of the wrong type": (
        GOOD.replace("size: int = 3", "size: int = 'three'"),
        """\
FAIL  defaults text_tokenizer/characters: the default of size is 'three', expected int
      next: correct the default, or the annotation, in CharactersConfig
skip  law: no laws are tested with --quick
""",
    ),
    "a heavy import, and a check that raises": (
        GOOD
        + """
def check(self):
    import matplotlib
    raise KeyError("size")
CharactersConfig.check = check
""",
        f"""\
FAIL  defaults text_tokenizer/characters: check() raises an error that is not a CM3Error: KeyError: 'size'
      | TMP/mine.py, line {GOOD.count(chr(10)) + 4}: raise KeyError("size")
      next: correct the plugin
FAIL  import matplotlib: matplotlib is imported when the plugin is described, which slows down every command
      | imported by TMP/mine.py, line {GOOD.count(chr(10)) + 3}
      next: import it in `build`, or in the module that `build` imports
skip  law: no laws are tested with --quick
""",
    ),
    "a name that is taken, keys without documentation, a print": (
        (GOOD + "print('hello')\n")
        .replace("size: how", "sise: how")
        .replace('"characters"', '"byte"'),
        """\
warn  keys text_tokenizer/byte: `size` is not documented; its Args: name `sise`, which is not a key
      next: write `size: what it means` below `Args:` in the docstring of CharactersConfig; did you mean 'size'?
warn  names text_tokenizer/byte: is also provided by bundled
      next: recipes must write mine/byte; rename it to avoid that
warn  output: it prints while it is described, and every cm3 command would show this on stderr
      | hello
      next: remove the print, or use logging
skip  law: no laws are tested with --quick
""",
    ),
    "a key that must be given, no docstring": (
        re.sub(r'    """.*?"""\n', "", GOOD, flags=re.DOTALL).replace("size: int = 3", "size: int"),
        """\
warn  keys text_tokenizer/characters: CharactersConfig has no docstring; `size` is not documented
      next: write `size: what it means` below `Args:` in the docstring of CharactersConfig
skip  defaults text_tokenizer/characters: `size` must be given
      next: cm3 plugin check ./mine.py characters.size=...
skip  law: no laws are tested with --quick
""",
    ),
}


@pytest.mark.parametrize("case", STATIC)
def test_what_is_wrong_is_told_and_ends_nothing(
    case: str, write: WriteFile, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, expected = STATIC[case]
    timeout = "3" if case == "a hang" else "60"
    code = main(["plugin", "check", write(source), "--quick", "--timeout", timeout])
    out = lines_of(capsys, tmp_path)
    told = "".join(f"{line}\n" for line in out.splitlines()[1:-1] if not line.startswith("ok "))
    assert told == expected
    assert code == (1 if "FAIL" in expected else 0)
