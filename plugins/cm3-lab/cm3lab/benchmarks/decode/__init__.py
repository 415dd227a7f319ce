"""`cm3 bench decode`: image tokens a second of our engine, compared with what is used
today, on one machine, in one call.

    command.py     the command line; light
    sizes.py       decoder sizes, and the extent of a quick and a full run; light
    workload.py    prompts, cases, and the minimum number of bytes that a step reads
    engine.py      our engine and its variants as providers; the gate: greedy tokens without a cache
    baselines.py   a plain loop, transformers' Janus, and LlamaGen's loop on transformers' Llama
    runner.py      gate, comparison, best of N, cost against length
    parts.py       what a step of the engine consists of
    report.py      tables and plots

Measuring, the JSON and the machine's description are those of `cm3 bench kernels`.
"""
