"""From lists of ids to batches on the device.

Reading order: `sampler` (which samples form a batch), `streams` (what a worker reads), `cache` (decoded images),
`loader` (batches on the device).
"""
