"""Which images are labeled, unlabeled and for validation: `split`, `lists`, `drawing`, `verify`, `stamps`."""
