"""`light_encoder`: two small towers trained from scratch; needs no extra package."""
