"""What searches by faiss share: files of indexes, kept next to what was indexed, and threads."""
