"""`bi_encoder`: frozen EfficientNet-Lite0 and MiniLM under two small heads."""
