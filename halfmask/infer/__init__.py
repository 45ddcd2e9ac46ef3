"""Use a trained network: scores, masks, exported files.

Reading order: `runs` (open a run or a bundle), `inference` (one image), `evaluate` with `metrics` (a data set),
`domains` (runs with a model for each of several datasets), `predict` (a folder), `tiles` (images of any size),
`export` (ONNX and torch.export).
"""
