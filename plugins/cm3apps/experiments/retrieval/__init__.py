"""What retrieved documents bring: `cm3 experiment retrieval`."""
