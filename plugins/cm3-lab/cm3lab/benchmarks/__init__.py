"""`cm3 bench`: what this project measures.

command.py     the command line; light
machine.py     the machine and its roofs, the JSON file
measure.py     time and memory on a CPU and on CUDA; a dry run without a GPU
kernels/       kernels and alternative implementations; two files of results compared
decode/        the engine's image tokens per second
retrieval/     the search of a memory bank
first_picture.py, metrics.py, precision.py, shards.py    one benchmark each
"""
