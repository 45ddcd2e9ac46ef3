"""Cityscapes (19 training classes), from label ids or training ids, whichever is on disk.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016, arXiv:1604.01685.

    leftImg8bit/PART/CITY/STEM_leftImg8bit.png   gtFine/PART/CITY/STEM_gtFine_{labelIds,labelTrainIds}.png

Published lists name `_labelTrainIds` files, which the download does not hold: then `_labelIds` is mapped on reading.
The masks of the test part hold only ids of ignored regions, so the test part counts as having none.
`train_extra` images are the part "unlabeled".
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from halfmask.data.folder.files import FileDataset, class_table, list_images, require_folder
from halfmask.data.folder.masks.decode import IGNORE, LabelMap, read_stored
from halfmask.errors import DataError
from halfmask.task import Task

CLASSES, PALETTE = class_table(
    """
road 804080; sidewalk f423e8; building 464646; wall 66669c; fence be9999; pole 999999; traffic light faaa1e;
traffic sign dcdc00; vegetation 6b8e23; terrain 98fb98; sky 4682b4; person dc143c; rider ff0000; car 00008e;
truck 000046; bus 003c64; train 005064; motorcycle 0000e6; bicycle 770b20
    """
)
# Position = training id; every other label id up to 33 (and -1, stored as 255) is void.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_FROM_LABEL_IDS = LabelMap(
    19,
    values={id: LABEL_IDS.index(id) if id in LABEL_IDS else IGNORE for id in (-1, *range(34), IGNORE)},
    complete=True,
)
_FROM_TRAIN_IDS = LabelMap(19)
_FOLDERS = {"train": "train", "val": "val", "test": "test", "unlabeled": "train_extra"}
_IMAGE_SUFFIX = "_leftImg8bit.png"


class Cityscapes(FileDataset):
    """Cityscapes with fine annotations."""

    splits_name: ClassVar[str] = "cityscapes"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        require_folder(self.root, ("leftImg8bit",), "Cityscapes")
        # Things: persons and vehicles, ids 11 to 18.
        self.task = Task("segmentation", CLASSES, foreground=tuple(id >= 11 for id in range(19)), palette=PALETTE)

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part; "unlabeled" are the `train_extra` images."""
        if part not in _FOLDERS:
            return []
        images = list_images(self.root / "leftImg8bit" / _FOLDERS[part], self.root)
        return [id for id in images if id.endswith(_IMAGE_SUFFIX)]

    def find_mask(self, id: str) -> Path | None:
        """Return the fine mask in training ids, else in label ids; nothing for test images."""
        parts = Path(id).parts
        if len(parts) < 3 or parts[1] not in {"train", "val"}:
            return None
        stem = parts[-1].removesuffix(_IMAGE_SUFFIX)
        folder = self.root.joinpath("gtFine", *parts[1:-1])
        candidates = (folder / f"{stem}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds"))
        return next((path for path in candidates if path.is_file()), None)

    def labels_of(self, mask: Path) -> LabelMap:
        """Tell label ids from training ids, by official file names, else by the values. Raises DataError: both fit."""
        if mask.stem.endswith("_labelTrainIds"):
            return _FROM_TRAIN_IDS
        if mask.stem.endswith("_labelIds"):
            return _FROM_LABEL_IDS
        present = set(np.unique(read_stored(mask).values).tolist())
        if present & set(range(19, 34)):
            return _FROM_LABEL_IDS
        if IGNORE in present:
            return _FROM_TRAIN_IDS
        raise DataError(
            f"{mask}: values up to {max(present)} fit label ids and training ids alike. "
            "Let the file name end in _labelIds.png or _labelTrainIds.png.",
            "H203",
        )
