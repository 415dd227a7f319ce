"""`cm3 experiment icons`: how well an icon model draws, and how much retrieved versions help."""
