"""`cm3 start`: look at a folder of a user's own pictures, and write a recipe to train on them."""
