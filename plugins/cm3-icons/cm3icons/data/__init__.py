"""The icon corpus: pinned sets, names, splits, pictures, captions, documents, and the command that builds it.

This module holds its config, which imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.dataset import CAPTIONED, DocumentSourceConfig, Judged
from cm3core.interfaces.reach import READS, TEXT, WRITES, Outside
from cm3icons.data.captions import DEFAULT_TEMPLATES, FIELDS
from cm3icons.data.sets import EMOJI_TITLES, STYLE_WORDS, all_sets
from cm3plugins.datasets.vector.captions import CaptionTemplate, check_templates

if TYPE_CHECKING:
    from cm3icons.data.source import IconSource

HeldOut: TypeAlias = Literal["closed", "by_name"]
#: Way of holding out -> its splits.
SPLITS_OF: Mapping[str, tuple[str, ...]] = {
    "closed": ("train", "unseen", "compose", "restyle", "variant", "strangers", "near", "all"),
    "by_name": ("train", "comp", "compose", "unseen", "all"),
}

#: Splits by which a model is judged, the most telling first -> titles.
JUDGED_SPLITS: Mapping[str, str] = {
    "restyle": "things of `train` in hands that lack them there (`restyle`)",
    "variant": "held-out variants of drawings that `train` has (`variant`)",
    "missing": "half of the things of sets of which nothing was trained, with the other half in the memory (`missing`)",
    "unseen": "things held out in all hands (`unseen`)",
}
#: Score -> its heading in reports.
HEADINGS: Mapping[str, str] = {
    "usable": "usable %",
    "thing": "thing %",
    "in_hand": "hand %",
    "copied": "copies %",
}

#: What a designer's held-out set lacks, and what is in the designer's memory; both overlap with the closed splits.
OF_STRANGERS = ("missing", "available")


def _splits_of(held_out: str) -> tuple[str, ...]:
    *own, every = SPLITS_OF[held_out]
    return (*own, *(OF_STRANGERS if held_out == "closed" else ()), every)


def check_split(split: str, held_out: str, ways: Mapping[str, Sequence[str]]) -> None:
    """Raise `RecipeError` for an unknown split, or one that the other way of holding out has. `ways`: of holding out,
    with their splits."""
    known = ways[held_out]
    if split in known:
        return
    others = [way for way, own in ways.items() if split in own and way != held_out]
    cause, step = f"is {split!r}; {close_match(split, known)}", f"use one of {', '.join(known)}"
    if others:
        cause = f"dataset.held_out={held_out} has no split {split!r}; {others[0]} has"
        step += f"; or set dataset.held_out={others[0]}"
    raise RecipeError("dataset.split", cause, step)


@dataclass(kw_only=True)
class IconSourceConfig(DocumentSourceConfig):
    """The icon corpus: about 100,000 pictures of 33,000 objects, most of them in several versions.

    Args:
        split: "train", "all", or one of the splits of `held_out`.
        held_out: "closed": what is held out is nowhere in train under another name, tag or look. Splits: "unseen"
            (objects), "compose" (two known words together), "restyle" (an object in one set, which others draw in
            train), "variant" (a set's own other drawing of what it has in train), "strangers" (whole sets), "near"
            (neither trained nor judged); "missing" is half of the objects of each set of "strangers", and "available"
            is train and the other half: the memory of a designer whose set lacks these. "by_name": as the bundled
            models were trained: "unseen" (names), "compose", "comp" (one drawing of a name); what they show may be in
            train under another name.
        sets: sets to include; empty: all. `cm3 recipe describe icons` does not list them: see
            `docs/icons.md`.
        styles: include only icons that have all these style words (outline, filled, duotone, colour, broken, thin,
            light, bold, rounded, sharp), and none that a minus stands before: `[-colour]` leaves out coloured ones.
        path: folder of a corpus written by `cm3 icons build`; null: the bundled one.
        things_share: use this share of objects, chosen by a hash of their names, for trials.
        image_size: height and width of the pictures, in pixels: 64 for viewing, 32 for trials.
        templates: caption templates with fields in braces: words, style, set, other (another name of the
            object, if there is one); the first is the canonical one.
        template_weights: how often each template is drawn, relative to the others.
        renamed_share: in this share of training sequences every set has a made-up title, the same in all captions of the
            sequence, so that the hand has to be taken from a prepended document of the set and not from its title: what
            sets that were not trained need.
        cache_dir: folder for rendered pictures; None: ``CM3_CACHE`` or, if unset, the user's cache folder.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "sets": TEXT,
        "styles": TEXT,
        "templates": TEXT,
        "path": Outside(READS, "icons"),
        "cache_dir": Outside(WRITES, "rendered pictures"),
    }

    earlier: ClassVar[Mapping[str, str]] = {"held_out": "by_name"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "things_share": (1e-6, 1),
        "image_size": (1, 2**14),
        "template_weights": (0, 1e9),
        "renamed_share": (0, 1),
    }
    later_keys: ClassVar[tuple[str, ...]] = ("renamed_share",)

    held_out: HeldOut = "closed"
    sets: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    path: str | None = None
    things_share: float = 1.0
    image_size: int = 64
    templates: list[str] = field(
        default_factory=lambda: [template.text for template in DEFAULT_TEMPLATES]
    )
    template_weights: list[float] = field(
        default_factory=lambda: [template.weight for template in DEFAULT_TEMPLATES]
    )
    renamed_share: float = 0.0
    cache_dir: str | None = None

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def judged(self) -> list[Judged]:
        """Whether drawings are usable, for icons without colour that closed splits hold out; nothing else is known to the
        judge of icons."""
        if self.held_out != "closed" or "-colour" not in self.styles:
            return []
        scores: list[dict[str, Any]] = [
            {"metric": {"name": "usable", "sets": [*self.sets]}},
            {"metric": {"name": "nats", "modality": "image"}},
        ]
        memory = {"missing": "available"}
        return [
            Judged(
                split, title, split, scores, HEADINGS, memory_split=memory.get(split), copies=True
            )
            for split, title in JUDGED_SPLITS.items()
        ]

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]  # of the way of holding out
        return _splits_of(self.held_out)

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split, set or style word, or invalid templates."""
        super().check()
        check_split(self.split, self.held_out, {way: _splits_of(way) for way in SPLITS_OF})
        known = (*all_sets(), *(f"emoji-{style}" for style in EMOJI_TITLES))
        for place, values, allowed, what in (
            ("dataset.sets", self.sets if self.path is None else [], known, "set"),
            (
                "dataset.styles",
                [one.removeprefix("-") for one in self.styles],
                STYLE_WORDS,
                "style word",
            ),
        ):
            for value in values:
                if value not in allowed:
                    cause = (
                        f"the icon corpus has no {what} {value!r}; {close_match(value, allowed)}"
                    )
                    raise RecipeError(place, cause, f"use one of {', '.join(allowed)}")
        if len(self.templates) != len(self.template_weights):
            cause = f"{len(self.template_weights)} weights for {len(self.templates)} templates"
            raise RecipeError("dataset.template_weights", cause, "set one weight per template")
        check_templates(
            "dataset.templates", self.caption_templates(), FIELDS, "{words}, {style}, {set}"
        )

    def caption_templates(self) -> tuple[CaptionTemplate, ...]:
        """Templates and weights together."""
        return tuple(map(CaptionTemplate, self.templates, self.template_weights))

    def build(self) -> IconSource:
        """Return the source. Nothing is rendered before the first picture is needed.

        Raises:
            RecipeError: a value is invalid.
            DataError: nothing is selected.
        """
        from cm3core.files import user_path
        from cm3icons.data.corpus import IconCorpus
        from cm3icons.data.sets import ASSETS
        from cm3icons.data.source import Chosen, IconSource

        self.check()
        return IconSource(
            IconCorpus(
                ASSETS if self.path is None else user_path(self.path, "dataset.path"), self.held_out
            ),
            Chosen(
                split=self.split,
                sets=self.sets,
                styles=self.styles,
                things_share=self.things_share,
            ),
            image_size=self.image_size,
            templates=self.caption_templates(),
            renamed_share=self.renamed_share,
            cache_dir=self.cache_dir,
        )
