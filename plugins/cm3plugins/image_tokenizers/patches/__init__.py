"""`patches`: each square of pixels separately, as the nearest of K known ones."""
