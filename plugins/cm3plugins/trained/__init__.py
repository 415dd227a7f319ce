"""What the components that are trained here share, whatever their kind: bundled weights, files of
weights, training runs."""
