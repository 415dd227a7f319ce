"""`light_encoder`: two small towers trained from nothing; needs no extra package."""
