"""Bundled samplers.

`top_p` (one stream), `cfg`, `edit_cfg` and `retrieval_cfg` (guidance with two and three streams), `cd_k` and
`contrastive` (contrastive decoding), `mixture` (candidates by `cfg` and by `cd_k`), `patch_knn` (another sampler's
codes mixed with codes from similar surroundings in a memory). All but `top_p` sample only ids that are plausible by
their own criteria.
"""
