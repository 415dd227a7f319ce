"""Scenes whose content is known exactly: the data set `scenes`, the reader that judges pictures, and its metrics."""
