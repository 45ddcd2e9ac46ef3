"""Which images an evaluation takes, and whether their classes are the model's."""

from pathlib import Path

from halfmask.data.contract import Dataset
from halfmask.data.splits.lists import Finder
from halfmask.data.splits.split import open_dataset, part_ids, resolve_split
from halfmask.errors import CheckpointError, DataError, RecipeError, bullet_list, nearest
from halfmask.recipe.read import DataRecipe
from halfmask.run.bundle import Bundle

_PARTS = ("val", "test", "train", "all")


def open_part(
    recipe: DataRecipe, data: str | Path | None, part: str, recorded_val: list[str] | None
) -> tuple[Dataset, list[str]]:
    """Open a dataset and give the ids to evaluate.

    Args:
        recipe: data section of the run.
        data: folder of the dataset; `None` takes the run's.
        part: `val`, `test`, `train`, `all`, or a list file.
        recorded_val: validation ids that the run recorded.

    Raises:
        DataError: a list that names other images, or no image with a mask in the part.
        RecipeError: no folder, or an unknown part.
    """
    if part not in _PARTS and not Path(part).is_file():
        raise RecipeError(
            f"part {part!r} is unknown.{nearest(part, _PARTS)} Known: {', '.join(_PARTS)}, or a list file that exists.",
            "H303",
        )
    here = recipe if data is None else recipe.model_copy(update={"root": str(data)})
    if here.root is None:
        raise RecipeError("the bundle does not say where data is. Give the folder: --data DIR.")
    # Without the lists of training: they name images of the training data, and other data has none of them.
    dataset = open_dataset(here.model_copy(update={"split": None, "labeled": None, "unlabeled": None, "val": "auto"}))
    if part == "val" and (data is None or _has_all(dataset, recorded_val)):
        # Opened as in training, the same masks are sealed and the classes are found in the same files.
        dataset = open_dataset(here)
        resolved = list(resolve_split(here, dataset).val)
        # A part held out anew, after images were added, could hold images of the training.
        ids = recorded_val or resolved
    elif part == "all":
        ids = sorted({id for name in ("train", "val", "test") for id in dataset.ids(name)})
    elif part == "test" and data is None and here.split is not None:
        ids = list(part_ids(here, dataset, part))  # published splits bring their own list
    elif part in _PARTS:
        ids = dataset.ids(part)
    else:
        ids = _listed(Path(part), dataset)
    ids = [id for id in ids if dataset.mask_path(id) is not None]
    if not ids:
        raise DataError(
            f"{dataset.root}: the part {part!r} has no image with a mask. Choose another: "
            "--part val | test | train | all (every image with a mask), or name a list file.",
            "H210",
        )
    dataset.sealed -= frozenset(ids)
    return dataset, ids


def check_classes(bundle: Bundle, dataset: Dataset) -> None:
    """Refuse data whose classes are not the model's.

    Raises:
        CheckpointError: another number, order or kind of classes.
    """
    if bundle.task.kind != dataset.task.kind:
        raise CheckpointError(
            f"{bundle.folder} was trained for {bundle.task.kind}, {dataset.root} is {dataset.task.kind} data. "
            "Give matching data with --data.",
            "H405",
        )
    model, data = bundle.task.classes, dataset.task.classes
    if len(model) != len(data):
        raise CheckpointError(
            f"{bundle.folder} predicts {len(model)} classes ({_some(model)}), but the masks in {dataset.root} have "
            f"{len(data)} ({_some(data)}). Evaluate on data of the same classes (--data), name the classes in "
            "halfmask.yaml as in training, or train a model for these.",
            "H405",
        )
    if model != data and sorted(model) == sorted(data):
        raise CheckpointError(
            f"{bundle.folder} has the classes of {dataset.root} in another order: ({_some(model)}) against "
            f"({_some(data)}). Use the order of training in the data's halfmask.yaml.",
            "H405",
        )


def _has_all(dataset: Dataset, ids: list[str] | None) -> bool:
    return bool(ids) and all(dataset.mask_path(id) is not None for id in ids or ())


def _listed(path: Path, dataset: Dataset) -> list[str]:
    """Ids of a list file; masks of a second column are taken over."""
    ids, absent = Finder(dataset).take_list(path, masks=True)
    if absent:
        raise DataError(
            f"{path}: {len(absent)} images are not below {dataset.root}. Give the folder they lie in with --data, or "
            f"take them off the list:\n{bullet_list(absent)}",
            "H211",
        )
    return ids


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
