"""Pascal VOC 2012 segmentation, with the augmented training set where it is present (21 classes).

Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015; additional masks:
Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.

    JPEGImages/ID.jpg   SegmentationClass/ID.png   [SegmentationClassAug/ID.png]   [ImageSets/Segmentation/*.txt]

The root may also be the folder above (`VOCdevkit/`, or the one that holds it). Palette and gray masks may be mixed.
Where an image has a mask in both folders, the one a list names is read, else the finer `SegmentationClass`.
"""

from pathlib import Path
from typing import ClassVar

from halfmask.data.folder.files import FileDataset, list_images, list_stems, require_folder
from halfmask.data.folder.masks.decode import LabelMap
from halfmask.palette import default_palette
from halfmask.task import Task

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_MASKS = ("SegmentationClass", "SegmentationClassAug")
_TRAIN_LISTS = ("train_aug", "trainaug")


class Pascal(FileDataset):
    """Pascal VOC 2012; training part = the augmented list where those masks exist, else the official one."""

    splits_name: ClassVar[str] = "pascal"

    def __init__(self, root: Path) -> None:
        root = Path(root)
        inner = [root / name for name in ("VOCdevkit/VOC2012", "VOC2012") if (root / name / "JPEGImages").is_dir()]
        super().__init__(inner[0] if inner else root)
        require_folder(self.root, ("JPEGImages",), "Pascal VOC 2012")
        self.task = Task(
            "segmentation", CLASSES, foreground=tuple(id > 0 for id in range(21)), palette=default_palette(21)
        )

    def ids(self, part: str) -> list[str]:
        """Return sorted ids; without `ImageSets/` every image with a mask is a training image."""
        if part == "val":
            return self._listed("val")
        if part != "train":
            return []
        for name in _TRAIN_LISTS:
            if listed := self._listed(name):
                return listed
        official = self._listed("train")
        if official and not (self.root / _MASKS[1]).is_dir():
            return official
        held_out = set(self._listed("val"))
        with_mask = {path.stem for name in _MASKS for path in (self.root / name).glob("[!.]*.png")}
        images = list_images(self.root / "JPEGImages", self.root, recursive=False)
        return [id for id in images if Path(id).stem in with_mask and id not in held_out]

    def find_mask(self, id: str) -> Path | None:
        """Return the mask in `SegmentationClass`, else in `SegmentationClassAug`."""
        candidates = (self.root / name / f"{Path(id).stem}.png" for name in _MASKS)
        return next((path for path in candidates if path.is_file()), None)

    def labels_of(self, mask: Path) -> LabelMap:
        """Return the identity: stored ids are training ids; 255 marks borders and difficult regions."""
        return LabelMap(21)

    def _listed(self, name: str) -> list[str]:
        path = self.root / "ImageSets" / "Segmentation" / f"{name}.txt"
        # Lists of the augmented set circulate in the two-column form: keep the stem of the first column.
        return sorted(f"JPEGImages/{Path(line).stem}.jpg" for line in list_stems(path)) if path.is_file() else []
