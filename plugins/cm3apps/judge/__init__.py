"""The judge: which concept of the bundled corpus a picture shows, to score generated pictures.

A CLIP-like scorer on frozen EfficientNet-Lite1 features; figures and how it was trained:
`assets/README.md`. It is not CLIP.
"""
