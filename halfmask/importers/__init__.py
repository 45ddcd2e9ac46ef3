"""Official checkpoints to our keys."""
