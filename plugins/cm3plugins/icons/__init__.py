"""Parts that only icon models need.

words       prompt_rewriter: word_lists: rewrites prompts in the words of the memory's texts
config      finisher: icon, upscaler: ink
ink         their implementations: no colour unless asked for; ink drawings as SVG, and enlarged

The icons themselves are the data set `cm3plugins.datasets.icons`.
"""
