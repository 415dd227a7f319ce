"""`patches`: every square of pixels by itself, as the nearest of K known ones."""
