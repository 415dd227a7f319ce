"""`cm3 bench kernels`: time and memory of our kernels and alternatives, on the same machine, in the same call; and
`cm3 bench compare`: two files of it.

command.py     the command line; light
selection.py   which ops, shapes, dtypes and directions are measured; `--list`
runner.py      checks correctness, then measures time; one case after the other; the roof that binds
report.py      table, JSON, CSV, plot
comparison.py  two JSON files; light
ops/           one file per op: its shapes, costs, reference and providers; backends.py: attention of other plugins
"""
