"""Networks: encoders, bottlenecks, decoders and the models made of them.

Reading order: `model` (the seams that methods use), `build` (from a recipe to a network), `encoders/`, `bottlenecks/`
and `decoders/` (one file each), `smp` (networks of another library), `ensemble` (the mean of several), `weights`
(pretrained ones) with `key_rules` (official names to ours), `timm_library` (timm, imported faster, and its attention),
`statistics` (batch norm), `coarse_logits` and `channel_attention` (fast forms), `projection` (heads of methods).
"""
