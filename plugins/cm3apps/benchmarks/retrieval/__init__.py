"""`cm3 bench retrieval`: what searching a memory bank costs, and what approximate indexes miss;
beside faiss called directly.

    command.py     the command line; light
    synthetic.py   a bank of vectors like those of a two-tower embedder, with queries of texts and of pictures
    runner.py      building, opening, searching; the loader's part of a training step
    report.py      tables and plots

The JSON and the machine's description are those of `cm3 bench kernels`.
"""
