"""Training: from a recipe to a run folder.

Reading order: `train` (a run and its supervised twin), `fit` (one run), `prepare` (every check before the first step),
`module` (the step: the only LightningModule), `callbacks` and `validation` (what happens around the steps),
`checkpoint`, `folder` and `bundle` (what is written).
"""
