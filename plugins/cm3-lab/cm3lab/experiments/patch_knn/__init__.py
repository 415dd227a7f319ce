"""`cm3 experiment patch-knn`: how much the sampler `patch_knn` improves the loss on held-out pictures."""
