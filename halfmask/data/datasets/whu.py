"""WHU-CD: buildings of one town before and after an earthquake's reconstruction (2 classes, image pairs).

Ji, Wei, Lu, "Fully Convolutional Networks for Multisource Building Extraction From an Open Aerial and Satellite Imagery
Data Set", IEEE TGRS 2019. Two large images (0.2 m, 2012 and 2016), cut to 256x256 by all users:

    A/whucd_00665.png  B/whucd_00665.png  label/whucd_00665.png     5947 / 743 / 744 pairs

The names do not tell the part: without list/{train,val,test}.txt in the root, or published lists named with
`data.splits` and `data.split`, every pair is a training pair. In labels 255 means changed, never unknown.
"""

from pathlib import Path
from typing import ClassVar

from halfmask.data.datasets.change_folder import CLASSES, PALETTE
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.masks.decode import LabelMap
from halfmask.data.folder.pairs import PairFiles, find_pairs
from halfmask.task import Task


class WHU(PairFiles, FileDataset):
    """WHU-CD, cut into tiles."""

    splits_name: ClassVar[str] = "whu"

    def __init__(self, root: Path) -> None:
        self.pairs = find_pairs(Path(root))
        super().__init__(self.pairs.root)
        self.task = Task("change", CLASSES, foreground=(False, True), palette=PALETTE)

    def labels_of(self, mask: Path) -> LabelMap:
        """Map 0 to unchanged, 255 (or 1) to changed."""
        return LabelMap(2, binary=True)
