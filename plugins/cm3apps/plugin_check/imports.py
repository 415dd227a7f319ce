"""The heavy packages that describing a plugin imports, with the lines that import them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import FrameType, ModuleType

from cm3apps.plugin_check.worker import is_ours, shortened

_NAMES = """
    PIL bm25s cv2 datasets diffusers faiss flashinfer jax keras librosa matplotlib onnxruntime pandas pyarrow resvg_py
    scipy skimage sklearn spacy spandrel tensorboard tensorflow timm tokenizers torch torchaudio torchvision
    transformers triton usearch webdataset xformers
"""
#: Packages that take long to import, or much memory: none may be imported before a component is
#: built.
HEAVY = frozenset(_NAMES.split())


class ImportWatch(MetaPathFinder):
    """Records the first import of each top-level package; finds nothing itself.

    Put it first in `sys.meta_path`.
    """

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Record the lines that import a top-level package outside the standard library."""
        if (
            "." not in fullname
            and fullname not in sys.stdlib_module_names
            and fullname not in self.chains
        ):
            self.chains[fullname] = list(_lines(sys._getframe(1)))

    def heavy(self) -> dict[str, list[str]]:
        """Imported heavy packages -> the lines that led there, the importing one first.

        Packages imported by another heavy package are left out.
        """
        found = {
            name: chain
            for name, chain in self.chains.items()
            if name in HEAVY and name in sys.modules
        }
        return {
            name: chain
            for name, chain in found.items()
            if not any(
                line.startswith(f"{other}/") for line in chain for other in found if other != name
            )
        }


def _lines(frame: FrameType | None) -> Iterator[str]:
    """ "file, line N" of each frame that imports, innermost first, up to the check's own."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if Path(filename).parent == Path(__file__).parent:
            return
        if not is_ours(filename):
            yield f"{shortened(filename)}, line {frame.f_lineno}"
        frame = frame.f_back
