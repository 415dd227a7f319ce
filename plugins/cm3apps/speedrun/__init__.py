"""`cm3 speedrun`: the shortest training that reaches a stated loss on held-out icons, and draws; rules in docs/speedrun.md."""
