"""`cm3 experiment tuning`: one base tuned on one mixture in several ways, measured on what is held out."""
