"""Checkpoints: written atomically, opened without running code, checked before they are used."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from halfmask.atomic import atomic_path
from halfmask.errors import CheckpointError
from halfmask.run.module import CHECKPOINT_FORMAT

Lists = Mapping[str, Sequence[str]]  # ids of labeled, unlabeled and validation images


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, so that an earlier checkpoint survives a full disk or a kill."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save tensors and plain types.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load with `weights_only=True`: a checkpoint cannot run code."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint on the CPU.

    Raises:
        CheckpointError: missing, truncated, or not one of ours.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint. A run keeps its state in <run>/checkpoints/last.ckpt.", "H407"
        )
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise CheckpointError(
            f"{path}: cannot be opened ({str(error).splitlines()[0]}). The file is damaged or holds more than tensors; "
            "use another checkpoint of the run.",
            "H402",
        ) from error
    about = checkpoint.get("halfmask") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{path}: not a halfmask checkpoint. Give one that a run has written (<run>/checkpoints/last.ckpt); those "
            "of other projects become bundles by halfmask import FILE.",
            "H403",
        )
    found = about.get("format")
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {found}, this version reads {CHECKPOINT_FORMAT}. Use the halfmask version "
            "named in the run's environment.json.",
            "H404",
        )
    return checkpoint


def check_matches(
    path: Path, checkpoint: dict[str, Any], meta: dict[str, Any], then: Lists | None = None, now: Lists | None = None
) -> None:
    """Refuse to continue a run whose classes or lists have changed.

    Args:
        path: of the checkpoint.
        checkpoint: its content.
        meta: what a checkpoint of the run as it is now would say.
        then: ids of each list when the run began, to name the difference.
        now: likewise of the lists as they are.

    Raises:
        CheckpointError: class count, class names or split lists differ from the checkpoint's.
    """
    saved = checkpoint["halfmask"]
    if saved["classes"] != meta["classes"]:
        raise CheckpointError(
            f"{path}: was trained for {len(saved['classes'])} classes ({_examples(saved['classes'])}), the data has "
            f"{len(meta['classes'])} ({_examples(meta['classes'])}). Use the data it was trained with, or start a new "
            "run with another --out.",
            "H405",
        )
    changed = [name for name, digest in saved["split"].items() if meta["split"].get(name) != digest]
    if changed:
        what = "".join(_difference(name, then or {}, now or {}) for name in changed)
        raise CheckpointError(
            f"{path}: the {' and '.join(changed)} list differs from the one the run started with.{what}\n  Restore the "
            "files (the run's split.json names them all), or start a new run with another --out.",
            "H405",
        )


def _difference(name: str, then: Lists, now: Lists) -> str:
    """Name what a list lacks and what it has too many; nothing where the earlier one is unknown."""
    if name not in then or name not in now:
        return ""
    gone, new = sorted(set(then[name]) - set(now[name])), sorted(set(now[name]) - set(then[name]))
    parts = [f"{len(ids)} {what} ({_examples(ids)})" for what, ids in (("missing", gone), ("new", new)) if ids]
    return f"\n  {name}: {', '.join(parts) or 'the same images in another order'}"


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
