"""What retrieved documents gain: `cm3 experiment retrieval`."""
