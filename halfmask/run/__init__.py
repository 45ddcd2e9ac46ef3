"""Training: from a recipe to a run folder.

Reading order: `train` (a run and its control), `fit` (one run), `prepare` with `prepared` (every check before the first
step), `loop/` (the steps and what happens around them), `checkpoint` and `folder` (what is written).
Beside them: `sources` and `domains` (one dataset or several), `stages` (several trainings in a row), `twin` (the same
run without the loss of the unlabeled images), `cost` (what a run will take), `predictor` (networks that were not
shipped), `own_loop` (methods and batches without the trainer).
"""
