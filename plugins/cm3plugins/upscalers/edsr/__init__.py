"""The trainable upscaler: a small residual network with a pixel shuffle; bundled weights."""
