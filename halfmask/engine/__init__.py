"""Training, evaluation, prediction and the files of a run."""
