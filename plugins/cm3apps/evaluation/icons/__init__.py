"""How well a model of icons draws, and what retrieved versions give it: `cm3 experiment icons`."""
