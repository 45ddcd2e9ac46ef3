"""Your own images for classification: one folder per class.

    {train,val,test}/CLASS/NAME.jpg   [unlabeled/NAME.jpg]      or      CLASS/NAME.jpg   [unlabeled/NAME.jpg]

Classes are the names of the folders, sorted; if all are numbers, by their value. Images beside the class folders have
no label. There may be more than 255 classes: the ignored label is -1.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import list_images
from halfmask.data.folder.folder_names import PART_NAMES
from halfmask.data.folder.images.decode import read_image
from halfmask.errors import DataError
from halfmask.task import Task

IGNORED_LABEL = -1
_NO_CLASSES = frozenset({"splits", "list", "lists"})


class ClassFolder(Dataset):
    """Images in folders named after their class.

    Args:
        root: the folder.
        bands: number of image bands.
        range: image values that become black and white; needed for 16-bit and float images.
    """

    def __init__(self, root: Path, *, bands: int = 3, range: tuple[float, float] | None = None) -> None:
        super().__init__(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder. Give the folder of the classes with --data DIR.", "H208")
        self.channels, self.value_range = bands, range
        self._parts: dict[str, list[str]] = {}
        self._class_of: dict[str, str] = {}
        parted = any(PART_NAMES.get(path.name.lower()) == "train" for path in self._folders(self.root))
        if parted:
            for folder in self._folders(self.root):
                if part := PART_NAMES.get(folder.name.lower()):
                    self._collect(part, folder)
        else:
            self._collect("train", self.root)
        names = set(self._class_of.values())
        if len(names) < 2:
            raise DataError(
                f"{root}: {len(names)} folders of classes. Expected train/CLASS/NAME.jpg, or CLASS/NAME.jpg, with two "
                "classes or more; images with masks are read with data.dataset=folder.",
                "H208",
            )
        numbers = all(name.isdigit() for name in names)
        self._order = sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))
        self.task = Task("classification", tuple(self._order), ignore_index=IGNORED_LABEL)

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part."""
        return list(self._parts.get(part, []))

    def read_image(self, id: str) -> UInt8[np.ndarray, "H W C"]:
        """Decode an image upright, uint8, bands last."""
        return read_image(self.root / id, channels=self.channels, value_range=self.value_range)

    def read_target(self, id: str) -> Integer[np.ndarray, ""]:
        """Return the class of an image, by its folder. Raises DataError: it lies in no class folder."""
        if id not in self._class_of:
            raise DataError(f"{id} lies in no class folder of {self.root}, so it has no label.", "H201")
        return np.array(self._order.index(self._class_of[id]), dtype=np.int64)

    def mask_path(self, id: str) -> Path | None:
        """Return the class folder of an image."""
        return (self.root / id).parent if id in self._class_of else None

    def _collect(self, part: str, base: Path) -> None:
        """Take the images of a part; those below a sub-folder are of its class."""
        ids = list_images(base, self.root, recursive=False)
        for folder in self._folders(base):
            if base == self.root and PART_NAMES.get(folder.name.lower()) == "unlabeled":
                self._collect("unlabeled", folder)
                continue
            if folder.name.lower() in _NO_CLASSES:
                continue
            inside = list_images(folder, self.root)
            ids += inside
            if part != "unlabeled":
                self._class_of |= dict.fromkeys(inside, folder.name)
        self._parts[part] = sorted(self._parts.get(part, []) + ids)

    @staticmethod
    def _folders(base: Path) -> list[Path]:
        return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
