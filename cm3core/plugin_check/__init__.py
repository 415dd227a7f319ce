"""`cm3 plugin check`: everything that can be said of a plugin without knowing what it is for.
Imports no torch.

The plugin is never imported in the process that asks: each part runs in a process of its own, which
is ended when it takes too long.

    targets   what a name, a folder or a file means; nothing of the plugin runs
    probe     a fresh process describes it as `cm3 plugin list` does: API version, hooks, names, keys, import time
    parts     another one loads its commands, benchmarks and models
    laws      one for each component runs the kind's conformance kit
    checking  calls them in this order and gathers a `Report`
"""
