"""Check that a dataset class keeps its contract, on a real or a tiny fake folder.

def test_my_dataset(tmp_path):
    ...write a few images and masks in the layout...
    check_dataset(MyDataset, tmp_path, my_parameter=3)
"""

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from halfmask.data.contract import Dataset
from halfmask.errors import DataError

_PARTS = ("train", "val", "test", "unlabeled")


def check_dataset(cls: type[Dataset], root: Path, *, limit: int = 8, **params: Any) -> Dataset:
    """Check a dataset class and give the opened dataset.

    Ids are sorted, stable, disjoint between parts and relative; images are uint8 with bands last, pairs with the dates
    in front; masks have the size of their images and hold classes or 255 (for classification: one label per image);
    an image without a mask, and one that does not exist, raise `DataError`; the dataset can be sent to loader
    processes; constructor parameters are keyword-only.

    Args:
        cls: the class.
        root: a folder in its layout with at least one training image that has a mask.
        limit: images and masks decoded per part.
        params: constructor arguments.

    Raises:
        AssertionError: what is broken.
    """
    signature = list(inspect.signature(cls).parameters.values())
    _expect(signature[0].name == "root", "the first constructor argument is `root`")
    keyword_only = all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in signature[1:])
    _expect(keyword_only, "constructor arguments after `root` are keyword-only: they are the recipe's schema")
    dataset = cls(root, **params)
    parts = {part: dataset.ids(part) for part in _PARTS}
    _check_ids(parts, cls(root, **params), dataset)
    labeled = 0
    for part, ids in parts.items():
        for id in ids[:limit]:
            labeled += _check_sample(dataset, id)
        _expect(part != "train" or labeled > 0, f"one of the first {limit} training images has a mask")
    _check_absent(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    first = next(id for ids in parts.values() for id in ids)
    _expect(np.array_equal(copy.read_image(first), dataset.read_image(first)), "a pickled copy reads the same images")
    return dataset


def _check_ids(parts: dict[str, list[str]], again: Dataset, dataset: Dataset) -> None:
    for part, ids in parts.items():
        _expect(ids == sorted(ids), f"ids({part!r}) are sorted")
        _expect(len(ids) == len(set(ids)), f"ids({part!r}) hold no image twice")
        _expect(ids == again.ids(part), f"ids({part!r}) are the same for every object")
        _expect(all(not id.startswith("/") and "\\" not in id for id in ids), "ids are relative, with forward slashes")
    for i, one in enumerate(_PARTS):
        for other in _PARTS[i + 1 :]:
            _expect(not set(parts[one]) & set(parts[other]), f"parts {one} and {other} share no image")
    _expect(dataset.ids("no such part") == [], "an unknown part has no ids")


def _check_sample(dataset: Dataset, id: str) -> bool:
    image = dataset.read_image(id)
    dates = image.shape[:-3]
    _expect(image.dtype == np.uint8 and image.ndim >= 3, f"{id}: the image is uint8 (H, W, C)")
    _expect(dates == ((dataset.dates,) if dataset.dates > 1 else ()), f"{id}: one image per date, the dates in front")
    _expect(image.shape[-1] == dataset.channels, f"{id}: the image has the dataset's {dataset.channels} bands")
    _expect(np.array_equal(image, dataset.read_image(id)), f"{id}: reading twice gives the same pixels")
    if dataset.mask_path(id) is None:
        _expect(_raises(lambda: dataset.read_target(id)), f"{id}: reading an absent mask raises DataError")
        return False
    target = dataset.read_target(id)
    if dataset.task.kind == "classification":
        _expect(target.dtype == np.int64 and target.shape == (), f"{id}: the label is an int64 without axes")
    else:
        fits = target.dtype == np.uint8 and target.shape == image.shape[-3:-1]
        _expect(fits, f"{id}: the mask is uint8, sized as its image")
    allowed = {*range(dataset.task.n_classes), dataset.task.ignore_index}
    _expect(set(np.unique(target).tolist()) <= allowed, f"{id}: the mask holds classes and the ignored value only")
    return True


def _check_absent(dataset: Dataset) -> None:
    _expect(_raises(lambda: dataset.read_image("no/such/image.png")), "reading an absent image raises DataError")
    _expect(_raises(lambda: dataset.read_target("no/such/image.png")), "reading an unknown mask raises DataError")


def _raises(call: Any) -> bool:
    try:
        call()
    except DataError:
        return True
    return False


def _expect(fact: bool, contract: str) -> None:
    # Not an assert statement: the checks must also run under `python -O`.
    if not fact:
        raise AssertionError(f"broken contract: {contract}")
