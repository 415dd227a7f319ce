"""`cm3 bench retrieval`: what searching a memory bank costs, and what approximate indexes miss;
compared with faiss called directly.

    command.py     the command line; light
    synthetic.py   a bank of vectors like a two-tower embedder's, with text and picture queries
    runner.py      building, opening, searching; the loader's part of a training step
    engines.py     databases beside the bank: pgvector
    embedded.py    those that run in this process: LanceDB, Qdrant
    report.py      tables and plots

The JSON and the machine's description are those of `cm3 bench kernels`.
"""
