"""`cm3 postgres`: fills, copies, changes and describes the database of the retriever `pgvector`."""
