"""Training: from a recipe to a run folder.

Reading order, from the verb to a single step:

    train      the verb: one run and, where asked for, its control, then their comparison
    fit        one run: calls `prepare`, trains, writes the folder; a method with stages goes through `stages`
    prepare    everything before the first step: open the data, build the method, check that they fit
    prepared   what that gives (`Prepared`), and each single check
    loop/      the steps and what happens around them

`checkpoint` and `folder` say what is written. Beside them: `sources` and `domains` (one dataset or several), `stages`
(several trainings in a row), `folds` (cross-validation, then a run on all masks), `twin` (which run another is compared
with), `cost` (what a run will take), `predictor` (networks that were not shipped), `own_loop` (methods and batches
without the trainer).
"""
