"""`cm3 bench decode`: image tokens per second of our engine, compared with common implementations, on the same
machine, in the same call.

    command.py     the command line; light
    sizes.py       decoder sizes, and the extent of a quick and a full run; light
    workload.py    prompts, cases, and the minimum number of bytes read per step
    engine.py      our engine and its variants as providers; checks greedy tokens without a cache
    baselines.py   a plain loop, transformers' Janus, and LlamaGen's loop on transformers' Llama
    runner.py      check, comparison, best of N, cost against length
    parts.py       the parts of an engine step
    report.py      tables and plots

Measuring, JSON and the machine's description are shared with `cm3 bench kernels`.
"""
