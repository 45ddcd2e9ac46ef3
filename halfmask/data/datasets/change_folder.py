"""Your own image pairs for change detection: A/, B/ and label/, in the layouts of the public datasets.

    A/NAME  B/NAME  label/NAME     or with train/, val/, test/ inside or around them; lists: list/{train,val,test}.txt

See `halfmask.data.folder.pairs` for all layouts and forms of lists. A pair without a label is unlabeled. Labels hold
class ids, 0 = unchanged and 1 = changed unless `halfmask.yaml` or `classes.txt` names others. Where they hold 0 and
255 only, 255 means changed, as usual in this field, and training says so; where they hold 1, 255 is unknown.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from halfmask.data.folder.description import Description, read_description
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.masks.decode import LabelMap, read_stored
from halfmask.data.folder.masks.ids import IdTable
from halfmask.data.folder.pairs import PairFiles, find_pairs
from halfmask.errors import DataError
from halfmask.task import Task

CLASSES, PALETTE = ("unchanged", "changed"), ((0, 0, 0), (255, 255, 255))
# Labels opened to see whether they hold 0 and 255 only.
_PROBED = 50


class ChangeFolder(PairFiles, FileDataset):
    """Pairs of images of one place at two dates.

    Args:
        root: the folder; `halfmask.yaml` in it may hold the same keys, arguments win.
        binary: 255 in the labels is class 1, not "unknown"; `null` finds it out from the labels.
        map: stored value -> class id, or 255 = ignore.
        classes: names, as a list or by stored id.
        ignore_index: stored value of unknown pixels; in targets it is always 255.
        bands: number of bands of one image.
        range: image values that become black and white; needed for 16-bit and float images.
        resize_masks: bring labels of another size to the image's by nearest neighbor instead of refusing them.
        same_light: one camera took both dates in one light, so strong views must change the colors of both alike;
            `null`: so it is where an earlier image serves at least two later ones on average.
    """

    def __init__(
        self,
        root: Path,
        *,
        binary: bool | None = None,
        map: dict[int, int] | None = None,
        classes: list[str] | dict[int, str] | None = None,
        ignore_index: int | None = None,
        bands: int | None = None,
        range: tuple[float, float] | None = None,
        resize_masks: bool = False,
        same_light: bool | None = None,
    ) -> None:
        self.pairs = find_pairs(Path(root))
        super().__init__(self.pairs.root)
        given: dict[str, Any] = {
            "binary": binary, "map": map, "classes": classes, "ignore_index": ignore_index, "bands": bands,
            "range": range, "same_light": same_light,
        }  # fmt: skip
        said = read_description(self.root, given)
        if said.nodata is not None:
            raise DataError(
                f"{root}: `nodata` is not supported for image pairs. Mark those pixels in the labels: 255.", "H209"
            )
        default = {} if said.classes else {"classes": dict(enumerate(CLASSES))}
        self._said: Description = said.model_copy(update=default)
        self._resize = resize_masks
        self.channels, self.value_range = said.bands, said.range
        self.mean, self.std = said.mean, said.std
        names = self._said.names or ()
        self.task = Task(
            "change",
            names,
            foreground=tuple(position > 0 for position, _ in enumerate(names)),
            palette=self._said.display_palette() or (PALETTE if len(names) == 2 else None),
            same_light=self._one_camera() if said.same_light is None else said.same_light,
        )

    def id_table(self) -> IdTable:
        """Return the ids of halfmask.yaml."""
        labels = self._labels
        named = () if labels.binary else tuple(sorted(self._said.classes or {}))
        return IdTable.of_labels(labels, self.task.n_classes, named)

    def labels_of(self, mask: Path) -> LabelMap:
        """Return a key that is the same for every label of a folder."""
        return self._labels

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]  # found out with the meaning of the labels
        """Tell whether 255 was taken for changed, and a camera for fixed."""
        notes = []
        if self._labels.binary and "binary" not in self._said.model_fields_set:
            notes.append(
                f"the labels of {self.root} hold 0 and 255 only: 255 is read as {self.task.classes[1]!r}. If it means "
                "unknown: data.dataset.binary=false."
            )
        if self.task.same_light and self._said.same_light is None:
            notes.append(
                "earlier images serve two or more later ones on average: strong views change the colors of both dates "
                "alike, as before a fixed camera. If their light differs: data.dataset.same_light=false."
            )
        return tuple(notes)

    def _one_camera(self) -> bool:
        # A single image that serves twice may be a copy, or two crops; a fixed camera has many frames per background.
        return 2 * len(set(self.pairs.before.values())) <= len(self.pairs.before)

    @cached_property
    def _labels(self) -> LabelMap:
        said = self._said
        if "binary" not in said.model_fields_set and not said.map and sorted(said.classes or {}) == [0, 1]:
            said = said.model_copy(update={"binary": self._holds_0_and_255_only()})
        return said.label_map(self.task.n_classes, resize=self._resize)

    def _holds_0_and_255_only(self) -> bool:
        seen: set[int] = set()
        for path in self.some_masks(_PROBED):
            seen |= set(np.unique(read_stored(path).values).tolist())
        return 255 in seen and seen <= {0, 255}
