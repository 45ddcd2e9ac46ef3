"""Names of the classes an imported network predicts: checkpoints hold their number only."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from halfmask.data.splits.split import open_dataset
from halfmask.errors import RecipeError, nearest
from halfmask.plugins import names
from halfmask.recipe.read import load
from halfmask.task import Kind, Task

# The datasets of published checkpoints, told by their kind and number of classes; both change datasets name them alike.
_BY_NUMBER = {
    "segmentation": {21: "pascal", 19: "cityscapes", 150: "ade20k", 81: "coco"},
    "change": {2: "levir"},
    "classification": {},
}
_NAME_THEM = "Name them: --classes crack,seam or --classes FILE, --data DIR, or --dataset NAME."


def known_dataset(kind: Kind, count: int) -> str:
    """Return the published dataset with so many classes, or an empty string."""
    return _BY_NUMBER[kind].get(count, "")


def make_task(kind: Kind, count: int, classes: str | Path | Sequence[str] | None, dataset: str | None) -> Task:
    """Build the task: what the network predicts.

    Raises:
        RecipeError: names cannot be told, or are of another number than K.
    """
    if (isinstance(classes, str) and Path(classes).is_dir()) or (isinstance(classes, Path) and not classes.is_file()):
        recipe = load({"data": {"root": str(classes), "dataset": dataset or "folder"}})
        given = open_dataset(recipe.data).task
        task, source = Task(kind, given.classes, foreground=given.foreground, palette=given.palette), str(classes)
    elif classes is not None:
        found = names_from(str(classes)) if isinstance(classes, str | Path) else tuple(classes)
        task, source = Task(kind, found), "--classes"
    else:
        name = dataset or known_dataset(kind, count)
        if not name:
            raise RecipeError(f"the checkpoint predicts {count} classes and does not hold their names. {_NAME_THEM}")
        task, source = _published(kind, name), f"dataset {name}"
    if task.n_classes != count:
        raise RecipeError(
            f"the checkpoint predicts {count} classes, but {source} names {task.n_classes} "
            f"({', '.join(task.classes[:5])}{', ...' if task.n_classes > 5 else ''}). {_NAME_THEM}",
            "H405",
        )
    return task


def names_from(text: str) -> tuple[str, ...]:
    """Read names with commas, or a file of one name per line; numbers and colors beside the names are skipped.

    >>> names_from("crack, seam")
    ('crack', 'seam')

    Raises:
        RecipeError: the file cannot be read.
    """
    path = Path(text)
    if path.suffix not in {".txt", ".csv"} and not path.is_file():
        return tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--classes {text}: cannot be read as a text file ({error}).") from None
    return tuple(_name_in(line) for line in lines if line.strip())


def _name_in(line: str) -> str:
    """Find the name in `background`, in `0 background`, and in columns of number, name and color."""
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) > 1 and columns[0].isdecimal():
        return columns[1]
    number, _, rest = line.strip().partition(" ")
    return rest.strip() if number.rstrip(":").isdecimal() and rest else columns[0]


def _published(kind: Kind, name: str) -> Task:
    known = names("datasets")
    if name not in known:
        raise RecipeError(f"there is no dataset {name!r}.{nearest(name, known)} Known: {', '.join(known)}.", "H303")
    module = import_module(f"halfmask.data.datasets.{name}")
    classes = getattr(module, "CLASSES", None)
    if classes is None:
        raise RecipeError(f"dataset {name} takes its classes from the folder. Give it: --data DIR --dataset {name}")
    return Task(kind, tuple(classes), palette=getattr(module, "PALETTE", None))
