"""Text tokenizers: `bpe` (byte-level BPE, trained on the captions or loaded) and `byte` (256
ids)."""
