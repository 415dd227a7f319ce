"""`cm3 bench kernels`: what our kernels cost beside everything else that computes the same, on one
machine, in one call.

command.py    the command line; light
registry.py   what an op, a case and a provider are, and where plugins add theirs (hook `cm3_benchmarks`)
measure.py    time and memory on a CPU and on CUDA, and how to execute all of it where there is no GPU
runner.py     correctness first, then time; one case after the other
report.py     table, JSON, plots
ops/          one file for each op: its cases, costs, reference and providers
"""
