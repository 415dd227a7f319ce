"""`cm3 quickstart`: train a small CM3leon on the bundled corpus, then show in one folder all that
it can do."""
