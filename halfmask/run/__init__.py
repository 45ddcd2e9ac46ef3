"""Training: from a recipe to a run folder.

Reading order: `train` (a run and its supervised twin), `fit` (one run), `prepare` (every check before the first step),
`stages` (several trainings in a row), `loop` (methods and batches for a training loop of your own),
`module` (the step: the only LightningModule), `callbacks` and `validation` (what happens around the steps),
`checkpoint`, `folder` and `bundle` (what is written).
"""
