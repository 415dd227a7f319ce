"""`cm3 quickstart`: train a small CM3leon on the bundled corpus, and show what it can do."""
