"""`cm3 embedder train | eval`: train the bundled embedders, and evaluate any embedder."""
