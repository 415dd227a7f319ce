"""`patch_knn`: codes that followed similar surroundings in a memory's pictures become more probable.

    config      the recipe's keys
    places      pictures -> distinct (codes around a place, code in it), counted
    database    a searchable file of them, kept next to the bank or in the cache
    sampler     wraps another sampler

Source: AR-RAG's distribution-level augmentation in decoding (arXiv 2506.06962).
"""
