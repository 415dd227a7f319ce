"""`cm3 bench kernels`: time and memory of our kernels and of alternative implementations, on one machine, in one call.

command.py    the command line; light
registry.py   ops, cases and providers; plugins add theirs here (hook `cm3_benchmarks`)
measure.py    time and memory on a CPU and on CUDA; a dry run where there is no GPU
runner.py     correctness first, then time; one case after the other
report.py     table, JSON, plots
ops/          one file for each op: its cases, costs, reference and providers
"""
