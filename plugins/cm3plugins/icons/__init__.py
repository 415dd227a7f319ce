"""What models of icons need around drawing, and other models do without.

words       prompt_rewriter: word_lists: prompts in the words that the memory's texts use
config      finisher: icon, upscaler: ink
ink         these: no colour unless it is asked for; drawings in ink as SVG, and large

The icons themselves are the data set `cm3plugins.datasets.icons`.
"""
