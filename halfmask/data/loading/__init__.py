"""From lists of ids to batches on the device.

Reading order: `sampler` (which samples form a batch), `streams` (what a worker reads), `weak` (tags and pseudo-masks),
`cache`, `loader`.
"""
