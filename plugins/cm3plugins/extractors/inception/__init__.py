"""The Inception network of 2015-12-05, whose last pooled features FID and KID compare."""
