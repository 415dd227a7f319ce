"""Text tokenizers: `bpe` (byte-level, trained on the captions or loaded) and `byte` (256 ids); `classes`; those of others."""
