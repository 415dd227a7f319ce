"""Shared by searches with faiss: index files, kept next to the indexed data, and threads."""
