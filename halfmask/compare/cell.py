"""Train one run of a comparison in a process of its own, score it, and keep what is known of it.

Beside the run folder `seed-0` lie `seed-0.json` (state, score, cost, recipe), `seed-0.npz` (counts of each test image)
and `seed-0.txt` (what the process printed). A process ends itself, with a checkpoint, when the one that started it is
gone.
"""

import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmask.atomic import atomic_path, write_json
from halfmask.data.splits.split import open_dataset, resolve_split
from halfmask.errors import DataError, Interrupted
from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.evaluate import DatasetItems, count_each
from halfmask.infer.runs import memory_cure, open_part, open_run
from halfmask.recipe.read import DataRecipe, load, present_names
from halfmask.report.records import members
from halfmask.run.cost import watch_peak
from halfmask.run.folder import describe_split
from halfmask.run.train import train

if sys.platform != "win32":
    import fcntl

Lists = Mapping[str, Mapping[str, Any]]  # count and sha256 of each

# How a run is computed, not what it computes; of the folder of the data, its lists tell (`other_images`).
_FREE = ("data.root", "data.workers", "data.cache", "run.accelerator", "run.devices", "run.nodes", "run.logger")


@dataclass(frozen=True)
class Order:
    """What a process is told."""

    folder: Path  # of the run
    recipe: dict[str, Any]  # as plain data
    part: str  # images to score
    overwrite: bool = False  # begin anew
    lists: Lists = field(default_factory=dict)  # of the images (`lists_of`)


def record_of(folder: Path) -> dict[str, Any]:
    """Read what is known of a run; nothing where there is none."""
    try:
        found = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def counts_of(folder: Path) -> np.ndarray:
    """Read the counts (N, K + 1, K) of a finished run's images."""
    with np.load(folder.with_suffix(".npz")) as file:
        return np.asarray(file["counts"])


def other_settings(record: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """List the keys in which a recorded run differs from the one that is asked for; a new key has its old default."""
    before, now = dict(_flat(present_names(record.get("recipe", {})))), dict(_flat(recipe))
    found = [key for key in now if key in before and before[key] != now[key]]
    found += [key for key in now if any(other.startswith(f"{key}.") for other in before)]  # `ce`, then a section
    found += [key for key in before if any(other.startswith(f"{key}.") for other in now)]
    return [key for key in found if not key.startswith(_FREE)]


def lists_of(data: DataRecipe, part: str) -> Lists:
    """Describe the images that a run learns from and is scored on, and the classes, by a count and a hash of each list.

    Raises:
        DataError, RecipeError: lists that cannot be used, or a part without masks.
    """
    try:
        dataset, scored = open_part(data, None, part, None)
    except DataError as error:
        if error.code != "H210":
            raise
        raise DataError(
            f"{data.root}: a comparison scores images that no run has trained on, and part {part!r} has none with a "
            f"mask. {_unseen(data)}",
            "H210",
        ) from None
    resolved = resolve_split(data, open_dataset(data))
    if trained := set(scored) & set(resolved.labeled):
        raise DataError(
            f"{len(trained)} of the {len(scored)} images of part {part!r} are trained on with their masks, and their "
            f"scores would say nothing. {_unseen(data)}",
            "H605",
        )
    split = describe_split(resolved)
    lists = {name: {"count": entry["count"], "sha256": entry["sha256"]} for name, entry in split.items()}
    return {**lists, "scored": _hashed(scored), "classes": _hashed(dataset.task.classes)}


def _unseen(data: DataRecipe) -> str:
    """Say which images can be scored instead, or how to hold some out of the training."""
    dataset = open_dataset(data.model_copy(update={"split": None, "labeled": None, "unlabeled": None, "val": "none"}))

    def masks(part: str) -> int:
        return sum(dataset.mask_path(id) is not None for id in dataset.ids(part))

    for part in ("test", "val"):
        if found := masks(part):
            return f"Score the part {part!r}: --part {part} ({found} image{'s' * (found > 1)})."
    if (found := masks("train")) < 3:
        return "Draw masks for a few more images, so that some can be held out of the training."
    held, root = found // 3, Path(data.root or "")
    spare = dataset.ids("unlabeled") or len(dataset.ids("train")) > found
    count = found - held if spare else max(1, (found - held) // 2)  # an empty list of unlabeled images is refused
    where, listed = shlex.quote(str(root)), shlex.quote(str(root / "splits" / "val.txt"))
    return (
        f"Hold some of the {found} masks out first, then score these:\n"
        f"    halfmask split --data {where} --count {count} --val {held}\n"
        f"    halfmask compare --data {where} data.split={count}_seed0 --part {listed} ..."
    )


def other_images(record: Mapping[str, Any], order: Order) -> list[str]:
    """List in what the images of a recorded run differ from those that are asked for: its part, lists, or their folder.

    Of a record without lists, which earlier versions wrote, split.json and the number of scored images are compared.
    """
    if not record:
        return []
    part = Path(record.get("part", order.part)).name  # of a list file: it may have moved
    found = ["part"] if part != Path(order.part).name else []
    before = record.get("lists") or _old_lists(record, order.folder)
    same: Any = [(name, key) for name in order.lists for key in order.lists[name] if key in before.get(name, {})]
    other = dict.fromkeys(name for name, key in same if before[name][key] != order.lists[name][key])
    found += [name if name == "classes" else f"{name} images" for name in other]
    root = record.get("recipe", {}).get("data", {}).get("root")
    if not any(key == "sha256" for _, key in same) and root != order.recipe["data"]["root"]:
        found.append("data.root")  # nothing shows that it holds the same images
    return found


def forget(folder: Path) -> None:
    """Remove record, counts and checkpoints of a run that begins anew, so that nothing takes the old one for it."""
    checkpoints = folder.rglob("last.ckpt")
    for path in (folder.with_suffix(".json"), folder.with_suffix(".npz"), *checkpoints):
        path.unlink(missing_ok=True)


def run_cell(order: Order, slot: dict[str, str]) -> None:
    """Train or resume a run, score it, and write its record; the body of a process.

    `slot` holds variables of the environment; `threads` is for torch.
    """
    order.folder.parent.mkdir(parents=True, exist_ok=True)
    with order.folder.with_suffix(".txt").open("a") as log:
        if sys.platform != "win32":  # there a process is ended without saving
            fcntl.flock(log, fcntl.LOCK_EX)  # another process may still be saving this run
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        _end_with_parent()
        if "threads" in slot:
            torch.set_num_threads(int(slot.pop("threads")))
        os.environ.update(slot)
        try:
            _train_and_score(order)
        except Interrupted as stopped:
            sys.exit(stopped.exit_code)
        except Exception as error:
            traceback.print_exc()
            first = str(error).partition("\n")[0]
            write_record(order, state="failed", problem=f"{type(error).__name__}: {first}")
            sys.exit(1)


def _train_and_score(order: Order) -> None:
    recipe = load(order.recipe)
    device = pick_device("cpu" if recipe.run.accelerator == "cpu" else "auto")
    begun = (order.folder / "recipe.yaml").exists() and any(order.folder.rglob("last.ckpt"))
    write_record(order, state="begun", problem="")
    with watch_peak(device) as peak:  # of this process: of an interrupted run, of its last part
        if begun and not order.overwrite:
            train(None, order.folder, resume=True, quiet=True)
        else:
            train(recipe, order.folder, overwrite=True, quiet=True)
    opened = open_run(order.folder, (), ("eval", "data"))
    dataset, ids = open_part(opened.data, None, order.part, opened.recorded_val)
    bundle = load_bundle(own_bundle(opened.folder), device)
    with memory_cure(opened.protocol):
        items = DatasetItems(dataset, ids)
        counts = count_each(bundle.model, items, bundle.task, opened.protocol, device, crop=bundle.crop).numpy()
    with atomic_path(order.folder.with_suffix(".npz")) as part:
        np.savez_compressed(part, counts=counts)
    [stages] = members(order.folder)
    speeds = [speed for stage in stages for _, speed in stage.curve("train/img_per_s")]
    write_record(
        order,
        state="done",
        problem="",
        metric=dataset.task.main_metric,
        kind=dataset.task.kind,
        absent=opened.protocol.absent_classes,
        images=len(ids),
        minutes=sum(stage.seconds for stage in stages) / 60,
        images_per_second=statistics.median(speeds) if speeds else None,
        peak_bytes=peak.most,
    )


def write_record(order: Order, **values: Any) -> None:
    """Write what is known of a run."""
    asked = {"recipe": order.recipe, "part": order.part, "lists": order.lists}
    write_json(order.folder.with_suffix(".json"), {**asked, **values})


def _end_with_parent() -> None:
    """Save and stop when the process that started this one is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _hashed(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"count": len(listed), "sha256": hashlib.sha256("\n".join(listed).encode()).hexdigest()}


def _old_lists(record: Mapping[str, Any], folder: Path) -> Lists:
    try:
        lists = dict(json.loads((folder / "split.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        lists = {}
    return {**lists, "scored": {"count": record["images"]}} if "images" in record else lists


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):  # an empty section is a value, too
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
