"""`cm3 bench decode`: image tokens a second of our engine, beside what people use today, on one
machine, in one call.

    command.py     the command line; light
    sizes.py       decoder sizes, and what a run of each length covers; light
    workload.py    prompts, cases, and the bytes that a step must read at least
    engine.py      our engine and its variants as providers; the gate: greedy tokens without a cache
    baselines.py   transformers' Janus, and a loop in LlamaGen's manner on transformers' Llama
    runner.py      gate, comparison, best of N, cost against length
    report.py      tables and plots

Measuring, the JSON and the machine's description are those of `cm3 bench kernels`.
"""
