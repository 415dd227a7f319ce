"""`cm3 bench kernels`: time and memory of our kernels and alternatives, on the same machine, in the same call.

command.py    the command line; light
registry.py   ops, cases and providers; plugins add theirs here (hook `cm3_benchmarks`)
measure.py    time and memory on a CPU and on CUDA; a dry run without a GPU
runner.py     checks correctness, then measures time; one case after the other
report.py     table, JSON, plots
ops/          one file per op: its cases, costs, reference and providers
"""
