"""Training of the judge, and measuring how well image tokenizers preserve what it scores."""
