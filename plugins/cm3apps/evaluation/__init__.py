"""`cm3 eval`: generate by a protocol, score, compare, export."""
