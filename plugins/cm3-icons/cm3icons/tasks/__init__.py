"""Config of records for tuning made from the icon corpus: edits, structure, scenes, boxes, questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from cm3core.interfaces.component import check_value
from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.interfaces.reach import READS, WRITES, Outside
from cm3icons.data import SPLITS_OF, HeldOut, check_split

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource

Form: TypeAlias = Literal[
    "edit", "structure", "scene", "grounding", "question", "chat", "super_resolution"
]
FORMS: tuple[Form, ...] = get_args(Form)
Changes: TypeAlias = Literal["all", "style", "badge"]
Asks: TypeAlias = Literal["all", "where"]


@dataclass(kw_only=True)
class IconTasksConfig(DocumentSourceConfig):
    """Records for tasks, made from the icon corpus (see `docs/icons.md` for its splits).

    Args:
        split: as in the data set `icons`. The expected output (the target of an edit, every icon of a scene)
            is in this split; the input may also be in train.
        held_out: as in the data set `icons`.
        form: "edit": two versions of an icon (style, or a badge such as a slash) and the change, fields
            source, instruction, target; "structure": the outline version of an icon and
            its caption, fields feature, condition, caption, image; "scene": two to four icons in boxes,
            fields caption, objects, image; "grounding": the same with the box of one icon, fields image,
            phrase, objects; "question": about icons and scenes, fields image, question, answer; "chat": a
            question about an icon and its answer, then another, fields image, conversation, answer;
            "super_resolution": an icon shrunk to half its side and enlarged again, and the original, fields
            source, target.
        changes: for "edit": pairs that differ in style, in a badge (one in fourteen), or all pairs.
        asks: for "question": all questions, or only where an object of a scene is.
        path: folder of a corpus written by `cm3 icons build`; null: the bundled one.
        things_share: use this share of objects, chosen by a hash of their names, for trials.
        num_scenes: number of scenes in the split.
        image_size: height and width of the pictures, in pixels.
        cache_dir: folder for rendered pictures; None: ``CM3_CACHE`` or, if unset, the user's cache folder.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "icons"),
        "cache_dir": Outside(WRITES, "rendered pictures"),
    }

    earlier: ClassVar[Mapping[str, str]] = {"held_out": "by_name"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "things_share": (1e-6, 1),
        "num_scenes": (1, 10_000_000),
        "image_size": (16, 2**14),
    }
    held_out: HeldOut = "closed"
    form: Form = "edit"
    changes: Changes = "all"
    asks: Asks = "all"
    path: str | None = None
    things_share: float = 1.0
    num_scenes: int = 20_000
    image_size: int = 64
    cache_dir: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]  # of the way of holding out
        return SPLITS_OF[self.held_out][:-1]

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split."""
        super().check()
        ways = {way: splits[:-1] for way, splits in SPLITS_OF.items()}
        check_split(self.split, self.held_out, ways)
        check_value(
            "dataset.changes",
            self.changes,
            self.changes == "all" or self.form == "edit",
            f"leave it out: it selects pairs of the form 'edit', not of {self.form!r}",
        )
        check_value(
            "dataset.asks",
            self.asks,
            self.asks == "all" or self.form == "question",
            f"leave it out: it selects questions of the form 'question', not of {self.form!r}",
        )

    def structures(self) -> list[str]:
        from cm3icons.tasks.source import OUTLINE

        return [OUTLINE] if self.form == "structure" else []

    def build(self) -> DocumentSource:
        """Return the records.

        Raises:
            DataError: there are none.
        """
        from cm3icons.tasks.source import SOURCES

        self.check()
        return SOURCES[self.form](self)
