"""`cm3 plugin check`: the checks that apply to any plugin. Imports no torch.

The plugin is never imported in the calling process: each part runs in its own process, which is
killed when it takes too long.

    targets   resolves a name, a folder or a file; runs none of the plugin's code
    probe     a process that describes the plugin as `cm3 plugin list` does: API version, hooks,
              keys, import time
    others    a process that imports the other plugins, to find names that are used twice
    parts     a process that loads its commands, benchmarks and models
    laws      a process per component that runs the kind's conformance kit
    checking  calls them in this order and collects a `Report`
"""
