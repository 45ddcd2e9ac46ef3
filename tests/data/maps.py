"""Small class maps with holes, ignored pixels and shapes inside shapes."""

import numpy as np

NESTED = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 255],
        [0, 1, 0, 0, 0, 2, 1, 0],
        [0, 1, 0, 3, 0, 2, 1, 0],
        [0, 1, 0, 0, 0, 2, 1, 2],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [255, 0, 2, 0, 1, 0, 0, 2],
    ],
    dtype=np.uint8,
)
CLASSES = ("background", "leaf", "stem", "fruit")


def random_maps(count, classes=4, ignore=True):
    rng = np.random.default_rng(1)
    for _ in range(count):
        height, width = rng.integers(1, 16, 2)
        mask = rng.integers(0, classes, (height, width)).astype(np.uint8)
        if rng.random() < 0.5:  # larger regions, with holes
            mask = np.repeat(np.repeat(mask, 3, axis=0), 2, axis=1)
        if ignore:
            mask[rng.random(mask.shape) < 0.1] = 255
        yield mask
