"""COCO 2017 as semantic segmentation (80 things and background), from PNG masks or from instance files.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv:1405.0312.

    {train,val,unlabeled}2017/ID.jpg   masks/ID.png            0 = background, 1..80 = things by category id
                                       annotations/instances_{train,val}2017.json, used where there is no masks/

Background is a trained and evaluated class. From instance files, small instances are painted over large ones and
crowd regions are 255, because they are not exhaustively outlined. An image without any instance is all background.
"""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations.coco.read import CocoFile
from halfmask.data.folder.files import FileDataset, class_table, list_images, require_folder
from halfmask.data.folder.masks.decode import LabelMap, fit_to_image
from halfmask.data.folder.masks.ids import IdTable
from halfmask.task import Task

CLASSES, PALETTE = class_table(
    """
background 000000; person dc143c; bicycle 770b20; car 00008e; motorcycle 0000e6; airplane 6a00e4; bus 003c64;
train 005064; truck 000046; boat 0000c0; traffic light faaa1e; fire hydrant 64aa1e; stop sign dcdc00;
parking meter af74af; bench fa001e; bird a52a2a; cat ff4dff; dog 00e2fc; horse b6b6ff; sheep 005200; cow 78a69d;
elephant 6e4c00; bear ae39ff; zebra c76400; giraffe 480076; backpack ffb3f0; umbrella 007d5c; handbag d10097;
tie bcd0b6; suitcase 00dcb0; frisbee ff63a4; skis 5c0049; snowboard 8581ff; sports ball 4eb4ff; kite 00e400;
baseball bat aefff3; baseball glove 2d59ff; skateboard 868667; surfboard 9194ae; tennis racket ffd0ba;
bottle c5e2ff; wine glass ab8601; cup 6d3f36; fork cf8aff; knife 97005f; spoon 09503d; bowl 546933;
banana 4a4169; apple a6c466; sandwich d0c3d2; orange ff6d41; broccoli 008f95; carrot b300c2; hot dog d1636a;
pizza 057900; donut e3ffcd; cake 93bad0; chair 994501; couch 035fa1; potted plant a3ff00; bed 7700aa;
dining table 00b6c7; toilet 00a578; tv b78258; laptop 5f2000; mouse 827287; remote 6e8185; keyboard a64a76;
cell phone db8eb9; microwave 4fd272; oven b25a3e; toaster 41460f; sink 7fa773; refrigerator 3b696a; book 8e6c2d;
clock c4ac00; vase 5f3650; scissors 804cff; teddy bear c93901; hair drier f6007a; toothbrush bfa2d0
    """
)

# The release numbers its 80 things from 1 to 90.
_CATEGORIES = (0, *(id for id in range(1, 91) if id not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
_FOLDERS = {"train": "train2017", "val": "val2017", "test": "test2017", "unlabeled": "unlabeled2017"}


class COCO(FileDataset):
    """COCO 2017, 81 classes.

    Args:
        root: the folder that holds `train2017/`; images may also lie below `images/`.
    """

    splits_name: ClassVar[str] = "coco"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        nested = "images/" if (self.root / "images").is_dir() else ""
        require_folder(self.root, tuple(f"{nested}{name}" for name in _FOLDERS.values()), "COCO 2017")
        self._folders = {part: f"{nested}{name}" for part, name in _FOLDERS.items()}
        self._png = (self.root / "masks").is_dir()
        self.task = Task("segmentation", CLASSES, foreground=tuple(id > 0 for id in range(81)), palette=PALETTE)

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part: the listing of its folder."""
        return list_images(self.root / self._folders[part], self.root) if part in self._folders else []

    def find_mask(self, id: str) -> Path | None:
        """Return the PNG mask, else the instance file that lists the image."""
        if self._png:
            flat = self.root / "masks" / f"{Path(id).stem}.png"
            nested = self.root / "masks" / Path(id).parent.name / f"{Path(id).stem}.png"
            return next((path for path in (flat, nested) if path.is_file()), None)
        file = self._files.get(Path(id).parent.name)
        return file.path if file is not None and Path(id).name in file else None

    def id_table(self) -> IdTable:
        """Return 0 to 80 beside PNG masks; beside instance files the category ids of the release."""
        plain = IdTable.plain(81)
        return IdTable(plain.ids if self._png else _CATEGORIES, categories=_CATEGORIES)

    def labels_of(self, mask: Path) -> LabelMap:
        """Return the identity: stored ids are training ids."""
        return LabelMap(81)

    def read_target(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Decode the PNG mask or paint the instances."""
        path = self.existing_mask(id)
        if path.suffix != ".json":
            return super().read_target(id)
        drawing = self._files[Path(id).parent.name].draw(Path(id).name)
        return fit_to_image(drawing.target, path, self.root / id)

    @cached_property
    def _files(self) -> dict[str, CocoFile]:
        paths = {name: self.root / "annotations" / f"instances_{name}.json" for name in ("train2017", "val2017")}
        names = dict(zip(CLASSES, range(81), strict=True))
        return {name: CocoFile(path, names) for name, path in paths.items() if path.is_file()}
