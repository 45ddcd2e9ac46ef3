"""LEVIR-CD: buildings that appeared or vanished in aerial images (2 classes, image pairs).

Chen and Shi, "A Spatial-Temporal Attention-Based Method and a New Dataset for Remote Sensing Image Change Detection",
Remote Sensing 2020.

    A/NAME.png  B/NAME.png  label/NAME.png  [list/{train,val,test}.txt]     cut to 256x256: 7120 / 1024 / 2048 pairs
    {train,val,test}/{A,B,label}/NAME.png                                   as distributed, 1024x1024: 445 / 64 / 128

Published lists hold bare names such as `train_369_10.png`: tile 10 (of 16) of training pair 369. Without lists in the
root, the first word of a name is its part. In labels 255 means changed, never unknown.
"""

from pathlib import Path
from typing import ClassVar

from halfmask.data.datasets.change_folder import CLASSES, PALETTE
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.masks.decode import LabelMap
from halfmask.data.folder.pairs import PairFiles, find_pairs, name_parts
from halfmask.task import Task


class LEVIR(PairFiles, FileDataset):
    """LEVIR-CD, whole or cut into tiles."""

    splits_name: ClassVar[str] = "levir"

    def __init__(self, root: Path) -> None:
        self.pairs = name_parts(find_pairs(Path(root)))
        super().__init__(self.pairs.root)
        self.task = Task("change", CLASSES, foreground=(False, True), palette=PALETTE)

    def labels_of(self, mask: Path) -> LabelMap:
        """Map 0 to unchanged, 255 (or 1) to changed."""
        return LabelMap(2, binary=True)
