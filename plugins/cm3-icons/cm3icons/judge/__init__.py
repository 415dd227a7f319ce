"""The judge, which recognises the concept of the bundled corpus that a picture shows, to score generated pictures.

It is a CLIP-like scorer on frozen EfficientNet-Lite1 features, but not CLIP. `assets/README.md` has its training
and figures.
"""
