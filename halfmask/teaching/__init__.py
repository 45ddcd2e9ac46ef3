"""What an unlabeled pixel is taught: teachers, pseudo-labels, memories, schedules.

Reading order: `ema` (the averaged teacher), `pseudo_label` (label and confidence), `weighting` (thresholds that follow
the batch), `propagation` (labels that spread by correlation), `ramps` (schedules), `alignment` (class frequencies),
`snapshots` (earlier networks), `memory` and `grouping` (AllSpark), `queues` (U2PL, PixCon), `class_statistics`
(confidence and features of classes), `activation_maps` and `dense_crf` (masks from image-level tags), `dist` (what
several processes share).
"""
