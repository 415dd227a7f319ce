"""The text tokenizer of a model exported as an OPT, and its README.

transformers reads `tokenizer.json`, a byte-level BPE. Its ids are the model's: text tokens are moved behind the control tokens,
and every other id has a name, such as `<image:7>`. Text never becomes one of these (`split_special_tokens`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3plugins.text_tokenizers.byte import NUM_BYTES, ByteTokenizer
from cm3plugins.text_tokenizers.byte_level_bpe import ByteLevelBPETokenizer

if TYPE_CHECKING:
    from cm3core.document import Document
    from cm3core.interfaces import TextTokenizer
    from cm3core.vocab import Vocabulary
    from cm3run.build import Components


def tokenizer_files(parts: Components) -> dict[str, Any]:
    """Return the contents of `tokenizer.json` and `tokenizer_config.json`, by name; none for a text tokenizer that is
    not a byte-level BPE."""
    content = _content(parts.text_tokenizer)
    if content is None:
        return {}
    layout = parts.serializer.layout
    vocabulary = layout.vocabulary
    own = content["model"]["vocab"]
    ids = vocabulary.of_text(np.fromiter(own.values(), np.int64, len(own))).tolist()
    table = dict(zip(own, ids, strict=True))
    texts = set(ids)
    names = {}
    for number in range(vocabulary.size):
        if number not in texts:
            names[number] = _name(vocabulary, number)
            while names[number] in table:  # a text token that is spelled like it
                names[number] = f"<{names[number]}>"
            table[names[number]] = number
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    begin = [names[number] for number in layout.begin]
    content["model"]["vocab"] = dict(sorted(table.items(), key=lambda item: item[1]))
    content["added_tokens"] = [
        {"id": number, "content": name, **special, "special": True}
        for number, name in names.items()
    ]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            *({"SpecialToken": {"id": name, "type_id": 0}} for name in begin),
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            *({"SpecialToken": {"id": name, "type_id": 0}} for name in begin),
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in zip(begin, layout.begin, strict=True)
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin[0],
        "eos_token": names[layout.end[0]],
        "pad_token": names[vocabulary.pad],
        "model_max_length": parts.context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    return {"tokenizer.json": content, "tokenizer_config.json": config}


def _content(tokenizer: TextTokenizer) -> dict[str, Any] | None:
    """Return a tokenizer as the values of a `tokenizer.json` with its own ids; None: it can't be one."""
    if isinstance(tokenizer, ByteLevelBPETokenizer):
        values: dict[str, Any] = json.loads(tokenizer.content)
        return values
    if not isinstance(tokenizer, ByteTokenizer):
        return None
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "pre_tokenizer": {**level, "use_regex": False},
        "decoder": {**level, "use_regex": False},
        "model": {"type": "BPE", "vocab": byte_symbols(), "merges": []},
    }


def byte_symbols() -> dict[str, int]:
    """Return GPT-2's printable symbol of each byte: the character itself, or one from 256.

    >>> byte_symbols()["A"], byte_symbols()["\\u0120"]
    (65, 32)
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [one for one in range(NUM_BYTES) if one not in plain]
    moved = {one: NUM_BYTES + place for place, one in enumerate(others)}
    return {chr(moved.get(one, one)): one for one in range(NUM_BYTES)}


def _name(vocabulary: Vocabulary, number: int) -> str:
    """Return the name of an id that is no text token."""
    name = vocabulary.name(number)
    if name.startswith("text:"):  # more room for texts than the tokenizer has ids
        return f"<unused:{number}>"
    return name if name.startswith("<") else f"<{name}>"


def readme(parts: Components, name: str, card: str) -> str:
    """Return the README of an export: how prompts become ids, and the model's card.

    Args:
        parts: the model's components.
        name: of the model.
        card: its `CARD.md`; "": it has none.
    """
    rows, columns = parts.image_tokenizer.grid
    ids, text, picture = parts.vocabulary, parts.vocabulary.text, parts.vocabulary.image
    front, body = _split_card(card)
    drawn = _formula(parts, (Text("x"), ImageHole()))
    told = _formula(
        parts, (TextHole(1), Codes(np.zeros(rows * columns, np.int32), (rows, columns)))
    )
    codes = {"first_code": picture.start, "last_code": picture.stop - 1, "codes": rows * columns}
    use = _WITH if _content(parts.text_tokenizer) else _WITHOUT
    special = sorted([*ids.special.values(), *ids.control_ids])
    return _PAGE.format(
        front="\n".join(["library_name: transformers", "pipeline_tag: text-generation", *front]),
        name=name,
        control=", ".join(f"{number} `{ids.name(number)}`" for number in special),
        text=f"{text.start} to {text.start + parts.text_tokenizer.vocab_size - 1}",
        sentinels=f"{ids.sentinels.start} to {ids.sentinels.stop - 1}",
        grid=f"{rows} rows of {columns} codes",
        context=parts.context_length,
        number="up to" if parts.image_tokenizer.form.is_sequence else "exactly",
        drawn=drawn,
        told=told,
        end=ids.end_of_infill,
        use=use.format(drawn=drawn.replace("text", "*text"), stop=picture.stop, **codes),
        card=f"\n## Model card\n\n{body.strip()}\n" if body else "",
        **codes,
    )


def _formula(parts: Components, document: Document) -> str:
    """Return a prompt's ids, with `text` and `picture` in place of runs of their ids."""
    ids, found = parts.vocabulary, list[str]()
    tokens = parts.serializer.prompt(document).tokens
    for number, is_text, is_image in zip(
        tokens, ids.is_text(tokens), ids.is_image(tokens), strict=True
    ):
        one = "text" if is_text else "picture" if is_image else str(number)
        if one.isdigit() or not found or found[-1] != one:
            found.append(one)
    return ", ".join(found)


def _split_card(card: str) -> tuple[list[str], str]:
    """Split a card into the lines before its text that the README keeps, and its text."""
    if not card.startswith("---\n"):
        return [], card
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    replaced = ("library_name:", "pipeline_tag:")
    return [line for line in head.splitlines() if not line.startswith(replaced)], body


_PAGE = """\
---
{front}
---
# {name}

A CM3leon in the format of Hugging Face's OPT, written by `cm3 convert --to opt`. It reads and writes the ids of texts and of
image codes. The folder `cm3` has its recipe and its tokenizers: `cm3 convert FOLDER -o MODEL` turns all of it into
a model of cm3leon again.

## Ids

| ids | |
| --- | --- |
| {control} | control tokens |
| {text} | text tokens |
| {first_code} to {last_code} | image codes: code c of the image tokenizer has the id {first_code} + c |
| {sentinels} | sentinels, each in place of something to be filled in |

A picture has {grid}, one row after the other. A sequence has at most {context} ids.

## Prompts

`text` and `picture` stand for the ids of a text and of a picture:

| to | prompt | generate |
| --- | --- | --- |
| draw a picture | {drawn} | {number} {codes} ids, each from {first_code} to {last_code} |
| caption a picture | {told} | text tokens, up to {end} |
| continue a text | the ids before `text` in the first line, text | text tokens |

An engine does not know these rules: allow only the ids of the last column. It has **no guidance**, no retrieval and no
choice among candidates, so its pictures are worse than those of `cm3 generate`.

{use}
cm3leon turns pixels into codes, and codes into pixels:

```python
import cm3core

tokenizer = cm3core.load("MODEL").components.image_tokenizer  # MODEL: made by cm3 convert FOLDER -o MODEL
codes = tokenizer.encode(pixels)  # uint8 [N, H, W, 3] -> int32 [N, {codes}]; ids are {first_code} + codes
pixels = tokenizer.decode(codes)
```
{card}"""

_WITH = """\
With transformers:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("FOLDER"), AutoModelForCausalLM.from_pretrained("FOLDER")
text = tokenizer("a red apple", add_special_tokens=False).input_ids
prompt = torch.tensor([[{drawn}]])
allowed = list(range({first_code}, {stop}))
ids = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens={codes},
                     prefix_allowed_tokens_fn=lambda *_: allowed)
codes = ids[:, prompt.shape[1]:] - {first_code}
```

Texts never become control tokens; with `split_special_tokens=False`, the tokenizer reads names such as
`<break>`. With vLLM, pass the ids (`prompt_token_ids`) and
`SamplingParams(allowed_token_ids=allowed, min_tokens={codes}, max_tokens={codes}, ignore_eos=True, detokenize=False)`.
"""
_WITHOUT = """\
There is no `tokenizer.json`, because the text tokenizer is not a byte-level BPE: start an engine without a tokenizer, and take
the ids of a prompt from `cm3core.load("MODEL").components.serializer.prompt(document).tokens`.
"""
