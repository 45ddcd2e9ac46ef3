"""What an unlabeled pixel is taught: teachers, pseudo-labels, memories, schedules.

Reading order: `ema` (the averaged teacher), `pseudo_label` (label and confidence), `ramps` (schedules), `alignment`
(class frequencies), `memory` and `grouping` (AllSpark), `activation_maps` and `dense_crf` (masks from image-level
tags), `dist` (what several processes share).
"""
