"""The folder that a conversion writes: it appears when it is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cm3core.errors import CM3Error, FileError
from cm3core.files import check_not_input, new_place
from cm3published.convert.model import PROVENANCE

#: Files beside the weights that a copy must keep.
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_new_folder(
    out: Path, source: Path, write: Callable[[Path], None], provenance: Mapping[str, Any]
) -> None:
    """Write a new folder, with where it comes from and the source's notices.

    Args:
        out: must not be there.
        source: what is converted.
        write: writes into an empty folder.
        provenance: stored beside it.

    Raises:
        FileError: it is there already, or can't be written; nothing is left behind.
    """
    check_not_input(out, source)
    target = Path(os.path.realpath(out))
    if target.exists():
        raise FileError(str(out), "is there already", "give a new folder")
    try:
        with new_place(target) as new:
            new.mkdir()
            write(new)
            (new / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
            for pattern in NOTICES:
                for notice in source.glob(pattern) if source.is_dir() else ():
                    if notice.is_file() and not notice.is_symlink():
                        shutil.copyfile(notice, new / notice.name)
            new.rename(target)
    except CM3Error:
        raise
    except (OSError, RuntimeError) as error:  # torch and safetensors report a full disk so
        text = str(error).splitlines()[0]
        raise FileError(
            str(out), f"can't be written ({text})", "see whether the disk has room for it"
        ) from error


def recipe_name(folder: str) -> str:
    """A recipe's name of a folder's.

    >>> recipe_name("My Janus!")
    'My-Janus'
    """
    return re.sub(r"[^\w.-]+", "-", folder).strip(".-")[:100] or "converted"
