"""Shared by searches with faiss: index files stored next to the indexed data, and threads."""
