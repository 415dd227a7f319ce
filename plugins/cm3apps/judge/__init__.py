"""The judge: says which concept of the bundled corpus a picture shows, so that generated pictures
can be scored.

A CLIP-like scorer on frozen EfficientNet-Lite1 features; figures and how it was trained:
`assets/README.md`. It is not CLIP.
"""
