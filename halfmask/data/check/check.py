"""Check a dataset, and on request write what halfmask.yaml should say; images and masks are never changed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from halfmask.atomic import write_text
from halfmask.data.check import Report, judge, propose, render, take_fingerprint
from halfmask.data.folder.description import FILE_NAME
from halfmask.data.splits.opening import load_checked
from halfmask.errors import DataError
from halfmask.recipe.read import Recipe, parse_override


def check(
    data: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    fix: bool = False,
    limit: int | None = None,
    workers: int = 0,
    tick: Callable[[int], None] = lambda total: None,
) -> Report:
    """Look at every file of a dataset once.

    Args:
        data: folder of the dataset.
        overrides: dotted `data.*` keys, for example `["data.dataset=pascal", "data.split=183"]`.
        fix: write the keys that follow from the files into `<data>/halfmask.yaml`, then check again.
        limit: look at so many images per part.
        workers: threads; 0 = one per core.
        tick: called after each image with the number of images.

    Raises:
        DataError: there is no such folder, or halfmask.yaml cannot be written.
        RecipeError: an override is wrong.
    """
    given = {} if data is None else {"data.root": str(data)}
    recipe: Recipe = load_checked(None, given | dict(parse_override(item) for item in overrides), only="data")
    seen = take_fingerprint(recipe.data, limit=limit, workers=workers, tick=tick)
    root = str(recipe.data.root)
    if not fix or not (proposal := propose(seen)):
        return judge(root, seen)
    path = Path(root) / FILE_NAME
    write_text(path, render(proposal, path.read_text("utf-8") if path.exists() else ""), error=DataError)
    seen = take_fingerprint(recipe.data, limit=limit, workers=workers, tick=tick)
    return judge(root, seen, (str(path), *proposal))
