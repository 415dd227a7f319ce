"""Parts that only icon models need.

config      finisher: icon, upscaler: ink
ink         their implementations: no colour after grey pictures; ink drawings as SVG, and enlarged

The icons themselves are the data set `cm3plugins.datasets.icons`.
"""
