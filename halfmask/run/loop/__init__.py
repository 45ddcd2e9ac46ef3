"""The steps of a run and what happens around them.

Reading order: `module` (the step: the only LightningModule), `optim` (parameter groups and learning rates), `trainer`
(device and precision), `callbacks` and `validation` (scores, checkpoints, signals), `average` (the mean of the last
weights), `shipping` (which network is shipped), `progress` (what the user sees), `finite` and `divergence` (a loss that
is not finite), `eager` and `lightning_library` (faster imports).
"""
