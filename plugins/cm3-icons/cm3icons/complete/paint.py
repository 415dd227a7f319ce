"""The paint of a set, as rules for drawing: a model then draws with the lines and areas that the set has."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cm3core.picture_form import FORBIDDEN, CodeRules
from cm3core.sequence.grammar import CodeGrammar
from cm3icons.complete.hand import Hand
from cm3icons.svg_codes.alphabet import (
    CAPS,
    JOINS,
    PAINTS,
    WIDTHS_PER_UNIT,
    alphabet,
)

if TYPE_CHECKING:
    from cm3run.model.model import Model


def rules_of(hand: Hand) -> CodeRules:
    """The rules of drawings, without the paints, widths, ends and shades that the set does not use."""
    table = alphabet()
    kinds = [
        "both" if fills and strokes else "stroke" if strokes else "fill"
        for fills, _, strokes in PAINTS
    ]
    used = {
        "paint": {place for place, kind in enumerate(kinds) if kind in hand.kinds},
        "width": {max(1, round(one / hand.unit * WIDTHS_PER_UNIT)) for one in hand.widths},
        "ends": {CAPS.index(cap) * len(JOINS) + JOINS.index(join) for cap, join in hand.ends},
    }
    unused = [
        code
        for code, (kind, value) in enumerate(table.named())
        if (kind in used and value not in used[kind])
        or (kind in ("tone", "opacity") and not hand.shaded)
    ]
    states, classes = table.rules.follows.shape
    class_of = table.rules.class_of.copy()
    class_of[unused] = classes
    never = np.full((states, 1), FORBIDDEN, np.int32)
    return CodeRules(class_of, np.concatenate([table.rules.follows, never], axis=1))


def in_paint_of(model: Model, hand: Hand) -> Model:
    """The model, which shares its weights, drawing in a set's paint; documents before its prompts may be painted in any
    way. A model with other codes, and a set without usual paints, are left as they are."""
    serializer = copy.copy(model.components.serializer)
    if serializer.form.rules != alphabet().rules or not hand.kinds & {"fill", "stroke", "both"}:
        return model
    form = replace(serializer.form, rules=rules_of(hand))
    serializer.code_grammar = CodeGrammar(form, serializer.vocabulary)
    changed = copy.copy(model)
    changed.components = copy.copy(model.components)
    changed.components.serializer = serializer
    changed._engine = None
    return changed
