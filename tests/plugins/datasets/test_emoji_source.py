"""Data set `emoji`: the kit."""

from __future__ import annotations

from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.emoji import EmojiSourceConfig
from profiles import examples


class TestEmoji(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return EmojiSourceConfig(concepts="quickstart", split="comp").build()
