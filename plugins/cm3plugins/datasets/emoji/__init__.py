"""The bundled corpus: emoji art in five permissive styles. Here is its config only; nothing heavy
is imported.

`EmojiCorpus` in ``corpus.py`` is the data alone (no documents); ``build.py`` rebuilds the data
files.
"""

from cm3plugins.datasets.emoji.config import SPLITS, EmojiSourceConfig

__all__ = ["SPLITS", "EmojiSourceConfig"]
