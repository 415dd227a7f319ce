"""What the sampler `patch_knn` gains: nats of held-out pictures. `cm3 experiment patch-knn`."""
