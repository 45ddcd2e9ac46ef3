"""CamVid (11 classes), in the SegNet form, the full form with color masks, or with `images/` and `masks/`.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth database", Pattern
Recognition Letters 2009; 11 classes: Badrinarayanan, Kendall, Cipolla, "SegNet", TPAMI 2017, arXiv:1511.00561.

    SegNet      PART/NAME.png   PARTannot/NAME.png                    gray ids, 11 = void
    full        701_StillsRaw_full/NAME.png   LabeledApproved_full/NAME_L.png   label_colors.txt   32 colors
    folders     images/PART/NAME.jpg   masks/PART/NAME.png            ids, 255 = void

The full form has no parts of its own: all its images are training images; split lists choose among them.
"""

from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from halfmask.data.folder.files import FileDataset, class_table, list_images, read_text, require_folder
from halfmask.data.folder.masks.decode import IGNORE, LabelMap
from halfmask.errors import DataError
from halfmask.palette import Color
from halfmask.task import Task

CLASSES, PALETTE = class_table(
    """
Sky 808080; Building 800000; Pole c0c080; Road 804080; Pavement 3c28de; Tree 808000; SignSymbol c08080;
Fence 404080; Car 400080; Pedestrian 404000; Bicyclist 0080c0
    """
)

# Which of the 32 original labels make up each of the 11 classes; all others (Void) are ignored.
_GROUPS = {
    "Sky": "Sky",
    "Building": "Bridge Building Wall Tunnel Archway",
    "Pole": "Column_Pole TrafficCone",
    "Road": "Road LaneMkgsDriv LaneMkgsNonDriv",
    "Pavement": "Sidewalk ParkingBlock RoadShoulder",
    "Tree": "Tree VegetationMisc",
    "SignSymbol": "SignSymbol Misc_Text TrafficLight",
    "Fence": "Fence",
    "Car": "Car SUVPickupTruck Truck_Bus Train OtherMoving",
    "Pedestrian": "Pedestrian Child CartLuggagePram Animal",
    "Bicyclist": "Bicyclist MotorcycleScooter",
}
_CLASS_OF = {label: CLASSES.index(name) for name, labels in _GROUPS.items() for label in labels.split()}
_FULL_IMAGES, _FULL_MASKS = "701_StillsRaw_full", "LabeledApproved_full"
_PARTS = ("train", "val", "test")


class CamVid(FileDataset):
    """CamVid, 11 classes."""

    splits_name: ClassVar[str] = "camvid"

    def __init__(self, root: Path) -> None:
        inner = Path(root) / "CamVid"
        super().__init__(inner if inner.is_dir() else root)
        require_folder(self.root, ("trainannot", _FULL_IMAGES, "images/train"), "CamVid")
        self.form: Literal["segnet", "full", "folders"] = "folders"
        if (self.root / "trainannot").is_dir():
            self.form = "segnet"
        elif (self.root / _FULL_IMAGES).is_dir():
            self.form = "full"
        # Object-like: Pole, SignSymbol, Fence, Car, Pedestrian, Bicyclist.
        foreground = tuple(id in {2, 6, 7, 8, 9, 10} for id in range(11))
        self.task = Task("segmentation", CLASSES, foreground=foreground, palette=PALETTE)

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part."""
        if self.form == "full":
            return list_images(self.root / _FULL_IMAGES, self.root) if part == "train" else []
        if part not in _PARTS:
            return []
        return list_images(self.root / (part if self.form == "segnet" else f"images/{part}"), self.root)

    def find_mask(self, id: str) -> Path | None:
        """Return the mask by the rule of the form."""
        image = Path(id)
        if self.form == "full":
            path = self.root / _FULL_MASKS / f"{image.stem}_L.png"
        elif self.form == "segnet":
            path = self.root / f"{image.parts[0]}annot" / f"{image.stem}.png"
        else:
            path = self.root / "masks" / Path(*image.parts[1:]).with_suffix(".png")
        return path if path.is_file() else None

    def labels_of(self, mask: Path) -> LabelMap:
        """Map ids with 11 or 255 = void, or the 32 colors."""
        return self._labels

    @cached_property
    def _labels(self) -> LabelMap:
        if self.form != "full":
            return LabelMap(11, values={11: IGNORE})
        path = self.root / "label_colors.txt"
        if not path.is_file():
            raise DataError(f"{path} is missing: it names the colors of the masks. It comes with the dataset.", "H206")
        colors: dict[Color, int] = {}
        for line in read_text(path, "H209").splitlines():
            if words := line.split():
                red, green, blue = (int(word) for word in words[:3])
                colors[red, green, blue] = _CLASS_OF.get(words[3], IGNORE)
        return LabelMap(11, colors=colors)
