"""`cm3 bench retrieval`: cost of searching a memory bank, and recall of approximate indexes, compared with faiss
called directly.

    command.py     the command line; light
    synthetic.py   a bank of vectors like a two-tower embedder's, with text and picture queries
    runner.py      building, opening, searching; the loader's part of a training step
    engines.py     databases to compare with: pgvector
    embedded.py    databases in this process: LanceDB, Qdrant
    report.py      tables and plots

JSON and the machine's description are shared with `cm3 bench kernels`.
"""
