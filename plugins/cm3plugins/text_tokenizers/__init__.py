"""Text tokenizers: `bpe` (byte-level, trained on the captions or loaded), `byte` (256 ids), `classes`, and published ones."""
