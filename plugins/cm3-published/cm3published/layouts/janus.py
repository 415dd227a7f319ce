"""`janus`: the layout of Janus' pictures. Light.

Names of tokens and the template of a request: DeepSeek's Janus (deepseek-ai/Janus, MIT) and
transformers' `JanusForConditionalGeneration` (Apache-2.0). Ids are looked up by name in the text
tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.interfaces.layout import Layout, LayoutConfig, VocabularyParts
from cm3core.interfaces.reach import TEXT, Outside
from cm3published.layouts.chameleon import find

if TYPE_CHECKING:
    from cm3core.interfaces.text_tokenizer import TextTokenizer
    from cm3core.vocab import VocabularySizes


@dataclass(kw_only=True)
class JanusLayoutConfig(LayoutConfig):
    """Janus' layout: `<begin> <|User|>: request, two line ends, <|Assistant|>: answer <end>`, a drawn
    picture between `<begin_of_image>` and `<end_of_image>`.

    Image codes have ids after those of texts. A guidance stream without text has padding in place of
    every token except the first and those that start the picture. Pictures can only be generated: Janus reads
    them through another network (SigLIP), which is not supported, so nothing may follow a picture.

    Args:
        first_code: id of image code 0; the others follow. null: after the text tokenizer's ids.
        begin, end, padding, picture_begin, picture_end: names of tokens.
        request, answer: text before each; names of tokens in it are replaced by the tokens.
        text_prefix: prefix of each text, encoded with it.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "begin": TEXT,
        "end": TEXT,
        "padding": TEXT,
        "picture_begin": TEXT,
        "picture_end": TEXT,
        "request": TEXT,
        "answer": TEXT,
        "text_prefix": TEXT,
    }

    has_sentinels: ClassVar[bool] = False
    reads_pictures: ClassVar[bool] = False
    needs_named_tokens: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"first_code": (1, 2**24)}

    first_code: int | None = None
    begin: str = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    end: str = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    padding: str = "<\uff5c\u2581pad\u2581\uff5c>"
    picture_begin: str = "<begin_of_image>"
    picture_end: str = "<end_of_image>"
    request: str = "<|User|>:"
    answer: str = "\n\n<|Assistant|>:"
    text_prefix: str = " "

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """The number of text ids and codes."""
        return None if self.first_code is None else self.first_code + sizes.num_image

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.vocab import Vocabulary
        from cm3published.layouts.turns import RequestLayout, RequestTokens, text_between

        tokenizer = parts.text_tokenizer
        special = tokenizer.special_ids()
        names = {
            "pad": self.padding,
            "bos": self.begin,
            "eos": self.end,
            "boi": self.picture_begin,
            "eoi": self.picture_end,
        }
        own = {role: find(special, name) for role, name in names.items()}
        first = tokenizer.vocab_size if self.first_code is None else self.first_code
        text = text_between(min(tokenizer.vocab_size, first), set(special.values()))
        codes = range(first, first + parts.codebook_size)
        tokens = RequestTokens(
            begin=(own["bos"], *ids_of_template(self.request, tokenizer)),
            answer=ids_of_template(self.answer, tokenizer),
            end=(own["eos"],),
            opening=(own["boi"],),
            closing=(own["eoi"],),
            blank=own["pad"],
            text_prefix=self.text_prefix,
        )
        return RequestLayout("janus", Vocabulary(codes.stop, text, codes, own), tokens)


def ids_of_template(template: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Encode a text, replacing names of special tokens by the tokens."""
    special = tokenizer.special_ids()
    names = sorted(special, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", template) if names else [template]
    ids: list[int] = []
    for piece in pieces:
        ids += [special[piece]] if piece in special else tokenizer.encode(piece) if piece else []
    return tuple(ids)
