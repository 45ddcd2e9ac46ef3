"""SUN RGB-D (37 classes), color images only, in a plain layout that one writes from the release.

Song, Lichtenberg, Xiao, "SUN RGB-D: A RGB-D Scene Understanding Benchmark Suite", CVPR 2015: 10,335 images of rooms,
5,285 to train and 5,050 to test.

    images/{train,test}/NAME.jpg   masks/{train,test}/NAME.png   8-bit, 0 = unlabeled, 1..37 = classes

The release keeps its label maps in one MATLAB file, numbered as above; write each map as a gray PNG, named like its
image. Papers call the test images their validation set, and so does this reader: they are the part "val".

Which classes are object-like is our choice: all but wall, floor, door, window and ceiling.
"""

from pathlib import Path
from typing import ClassVar

from halfmask.data.folder.files import FileDataset, list_images, require_folder
from halfmask.data.folder.masks.decode import IGNORE, LabelMap
from halfmask.palette import default_palette
from halfmask.task import Task

CLASSES = tuple(
    """
wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves,
curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, fridge, tv, paper, towel, shower curtain, box,
whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag
""".strip()
    .replace("\n", " ")
    .split(", ")
)
_ROOM = {"wall", "floor", "door", "window", "ceiling"}
_LABELS = LabelMap(37, values={0: IGNORE} | {id: id - 1 for id in range(1, 38)}, complete=True)
_FOLDERS = {"train": "train", "val": "test"}


class SunRGBD(FileDataset):
    """SUN RGB-D, 37 classes."""

    splits_name: ClassVar[str] = "sun_rgbd"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        require_folder(self.root, ("images/train",), "SUN RGB-D")
        foreground = tuple(name not in _ROOM for name in CLASSES)
        # Black stays with unlabeled pixels.
        self.task = Task("segmentation", CLASSES, foreground=foreground, palette=default_palette(38)[1:])

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of "train", and of "val": the official test images."""
        return list_images(self.root / "images" / _FOLDERS[part], self.root) if part in _FOLDERS else []

    def find_mask(self, id: str) -> Path | None:
        """Return the mask of the same name below `masks/`."""
        path = (self.root / "masks").joinpath(*Path(id).parts[1:]).with_suffix(".png")
        return path if path.is_file() else None

    def labels_of(self, mask: Path) -> LabelMap:
        """Map 0 to unlabeled, then the classes from 1."""
        return _LABELS
