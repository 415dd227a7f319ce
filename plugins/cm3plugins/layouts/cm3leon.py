"""`cm3leon`: the paper's layout."""

from __future__ import annotations

from dataclasses import dataclass

from cm3core.interfaces.layout import Layout, LayoutConfig, VocabularyParts


@dataclass(kw_only=True)
class CM3LeonLayoutConfig(LayoutConfig):
    """`<eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>`, and sentinels (paper section 2.2).

    Ids follow from the recipe's section `vocabulary`: four control tokens, texts, image codes, those
    in reserve, `<break>`, `<eoss>`, sentinels. A recipe without a layout has this one.
    """

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.sequence import SentinelLayout

        return SentinelLayout(parts.by_sizes, "cm3leon")
