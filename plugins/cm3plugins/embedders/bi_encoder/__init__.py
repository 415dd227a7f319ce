"""`bi_encoder`: two small heads on frozen EfficientNet-Lite0 and MiniLM."""
