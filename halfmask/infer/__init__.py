"""Use a trained network: scores, masks, exported files.

Reading order: `runs` (open a run or a bundle), `bundle` (its files), `inference` (one image), `evaluate` with `metrics`
(a dataset), `bootstrap` (how far a score can be trusted), `seen` (was the model trained on these images?), `domains`
(runs with a model for each of several datasets), `predict/` (images into mask files), `export` (ONNX and torch.export),
`devices` (device and processes).
"""
