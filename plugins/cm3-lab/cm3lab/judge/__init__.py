"""Training of the judge, and measuring how well a tokenizer keeps what it scores."""
