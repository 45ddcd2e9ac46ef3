"""What a network is shown: views of images, and perturbed features.

Reading order: `weak` (scale, crop and flip, on the host), `strong` (color and blur, on the device; parts in `color` and
`blur`), `pillow_ops` (AugSeg's colors), `mixing` (CutMix) with `boxes` (other rules of boxes), `channel_dropout`
(UniMatch), `feature_noise` and `vat` (the perturbations of CCT), `flow_noise` (DDFP), `components` (connected regions
that guided perturbations need).
"""
