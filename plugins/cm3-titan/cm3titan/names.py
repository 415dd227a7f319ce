"""Names of the decoder's tensors: ours in checkpoints, and those of `model` in torchtitan. Light: no torchtitan here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from cm3core.errors import CheckpointError

T = TypeVar("T")

HEAD = "lm_head.weight"
EMBEDDING = "tok_embeddings.tokens.weight"
#: Ours -> torchtitan's, outside the layers.
_OUTER = {
    "embed_tokens.weight": EMBEDDING,
    "embed_positions.weight": "tok_embeddings.places.positions.weight",
    "embed_rows.weight": "tok_embeddings.places.rows.weight",
    "embed_columns.weight": "tok_embeddings.places.columns.weight",
    "embed_output.weight": HEAD,
}
_OUTER_BACK = {theirs: own for own, theirs in _OUTER.items()}
#: Part of a layer -> its module in torchtitan's block.
_PARTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "q_norm", "k_norm"), "attention"),
    **dict.fromkeys(("fc1", "fc2"), "feed_forward"),
}
_OWN = re.compile(r"layers\.(\d+)\.(\w+)\.weight")
_THEIRS = re.compile(r"layers\.(\d+)\.(\w+)\.(\w+)\.weight")


def titan_name(name: str) -> str:
    """torchtitan's name of one of our tensors.

    >>> titan_name("layers.3.fc1.weight"), titan_name("embed_rows.weight")
    ('layers.3.feed_forward.fc1.weight', 'tok_embeddings.places.rows.weight')

    Raises:
        CheckpointError: the decoder has no such tensor.
    """
    if name in _OUTER:
        return _OUTER[name]
    found = _OWN.fullmatch(name)
    if found is None or found[2] not in _PARTS:
        raise _unknown(name)
    return f"layers.{found[1]}.{_PARTS[found[2]]}.{found[2]}.weight"


def own_name(name: str) -> str:
    """Our name of one of torchtitan's tensors.

    >>> own_name("layers.3.feed_forward.fc1.weight")
    'layers.3.fc1.weight'

    Raises:
        CheckpointError: the decoder has no such tensor.
    """
    if name in _OUTER_BACK:
        return _OUTER_BACK[name]
    found = _THEIRS.fullmatch(name)
    if found is None or _PARTS.get(found[3]) != found[2]:
        raise _unknown(name)
    return f"layers.{found[1]}.{found[3]}.weight"


def own_state(state: Mapping[str, T], *, tied: bool) -> dict[str, T]:
    """Tensors by our names; a head that is tied to the embedding is left out."""
    return {own_name(name): one for name, one in state.items() if not (tied and name == HEAD)}


def titan_state(state: Mapping[str, T], *, tied: bool) -> dict[str, T]:
    """Tensors by torchtitan's names; a tied head is the embedding."""
    found = {titan_name(name): one for name, one in state.items()}
    if tied and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]
    return found


def _unknown(name: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {name!r}",
        "is not one of the decoder cm3leon",
        "use a checkpoint of that decoder, without adapters",
    )
