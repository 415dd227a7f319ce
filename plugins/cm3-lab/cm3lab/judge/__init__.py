"""Training of the judge, and measuring how well image tokenizers preserve its scores."""
