"""`cm3 eval card`: a model's card, written from stored results, and checked against the model's weights."""
