"""Memory banks: documents as text and codes with their vectors, kept in a folder, for retrieval.

Legend: M documents, E dimension of the embedder's space.
"""

from cm3core.bank.vector_rows import VectorRows

__all__ = ["VectorRows"]
