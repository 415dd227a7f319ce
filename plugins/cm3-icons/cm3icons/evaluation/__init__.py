"""How icons are judged: usable ones, copies, hands, and ranks among real ones."""
