"""What `halfmask check --fix` writes: the keys of halfmask.yaml that follow from the files without asking anybody."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from halfmask.data.annotations.instances import background_and_object
from halfmask.data.check.fingerprint import Fingerprint
from halfmask.data.check.mask_rules import labels_of
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.images.decode import likely_range
from halfmask.data.folder.masks.decode import IGNORE
from halfmask.palette import hex_color

_MOST_CLASSES = 64
_FLOW = {True: None, False: False}


def propose(seen: Fingerprint) -> dict[str, Any]:
    """Return the keys to add to halfmask.yaml, none of which it holds yet.

    * classes, as found in the masks; from the ids 1..K, or gaps, the ids as stored;
    * `binary` where all masks hold 0 and 255 only: read as "ignore", 255 would leave a single class;
    * `palette` and classes for masks saved as colors, the most frequent color first;
    * `map` where classes 0..K-1 are named and masks hold 1..K;
    * `bands` and `range` for images that are not 8-bit RGB.
    """
    if not isinstance(seen.dataset, Folder):
        return {}
    said = seen.dataset.description
    return {key: value for key, value in (_images(seen) | _masks(seen)).items() if key not in said.model_fields_set}


def render(proposal: Mapping[str, Any], existing: str = "") -> str:
    """Write the keys as YAML below what the file holds already.

    >>> print(render({"classes": {0: "background", 1: "leaf"}, "binary": True}), end="")
    classes: {0: background, 1: leaf}
    binary: true
    """
    lines = [
        # Tables on one line; a mapping of one scalar would otherwise become a table itself.
        yaml.safe_dump(
            {k: v}, default_flow_style=None if isinstance(v, dict | list) else False, sort_keys=False, width=110
        )
        for k, v in proposal.items()
    ]
    head = existing if not existing or existing.endswith("\n") else f"{existing}\n"
    return head + "".join(lines)


def _images(seen: Fingerprint) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    deep = [facts for facts in seen.images.values() if " x" in facts.mode]
    bands = {int(facts.mode.rpartition("x")[2]) for facts in deep}
    if len(bands) == 1 and len(deep) == len(seen.images) and bands.isdisjoint({1, 2, 3, 4}):
        keys["bands"] = bands.pop()
    limits = [facts.limits for facts in deep if facts.limits is not None]
    if limits:
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        integers = all(facts.mode.startswith(("uint", "int")) for facts in deep)
        keys["range"] = list(likely_range(int(low), int(high)) if integers else (low, high))
    return keys


def _masks(seen: Fingerprint) -> dict[str, Any]:
    masks = [mask for mask in seen.masks.values() if mask.error is None and mask.kind != "painted"]
    if not masks:
        return {}
    if any(mask.kind == "colors" for mask in masks):
        return _colors(Counter({color: n for mask in masks for color, n in mask.colors.items()}))
    found = {value for mask in masks for value in mask.values}
    ignored = seen.dataset.description.ignore_index if isinstance(seen.dataset, Folder) else IGNORE
    ids = sorted(found - {IGNORE, ignored})
    task = seen.task
    if task is None and found == {0, 255}:
        return {"classes": {0: "background", 1: "foreground"}, "binary": True}
    if task is None and any(error.code == "H217" for error in seen.failures):
        return background_and_object(ids[-1])
    if task is None:
        return {"classes": {id: f"class_{id}" for id in ids}} if 2 <= len(ids) <= _MOST_CLASSES and ids[0] >= 0 else {}
    labels = labels_of(seen, masks[0])
    if 0 not in found and ids and ids[-1] == task.n_classes and labels is not None and labels.training_id(ids[-1]) < 0:
        return {"map": {id: id - 1 for id in range(1, task.n_classes + 1)}}
    stored = [id for id in range(task.n_classes + 1) if id != ignored] if ignored <= task.n_classes else None
    return {"classes": dict(zip(stored or range(task.n_classes), task.classes, strict=False))}


def _colors(counts: Counter[tuple[int, int, int]]) -> dict[str, Any]:
    if not 2 <= len(counts) <= _MOST_CLASSES:
        return {}  # a photograph, or a drawing with smoothed edges: no table can mend that
    order = sorted(counts, key=lambda color: (-counts[color], color))
    palette = dict(enumerate(map(hex_color, order)))
    return {"classes": {id: f"color_{color[1:]}" for id, color in palette.items()}, "palette": palette}
