"""A bundle: one predictor's weights and everything needed to use them, without any code in the files.

model.safetensors   the state dict
model.json          format version, task, `Model.spec`, classes, mean/std, bands, crop, license, protocol,
                    SHA-256 of the weights

bundle = load_bundle("runs/field")
logits = bundle.model(image)          # image (B, C, H, W), RGB in [0, 1]: the model normalizes
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfmask import __version__
from halfmask.atomic import atomic_path, flush, json_text
from halfmask.errors import CheckpointError, RecipeError, bullet_list
from halfmask.models.build import build_network, read_task
from halfmask.models.key_rules import misfits
from halfmask.models.model import Network
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Task
from halfmask.written import digest_of

FORMAT = "halfmask-bundle"
FORMAT_VERSION = 1
_ENSEMBLE_VERSION = 2  # of bundles of several networks, which version 1 cannot express

STAGES = "stages.json"  # in the folder of a staged run: the names of its stages, in order
FOLDS = "folds.json"  # likewise: what cross-validation was asked for, and the estimate
COMPARED = "twin.json"  # likewise: the comparison with its control or twin, and which of them is shipped
PREDICTORS = "predictors"  # folder in that of a run: bundles of networks that it did not ship
_WEIGHTS, _META = "model.safetensors", "model.json"
_NEEDED = ("task", "model", "sha256")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Args:
        model: in eval mode; takes images in [0, 1].
        task: classes, ignore index, palette.
        meta: content of model.json.
        folder: where it was read from.
    """

    model: Network
    task: Task
    meta: dict[str, Any]
    folder: Path

    @property
    def protocol(self) -> EvalRecipe:
        """Evaluation protocol it was chosen by; the default one where none was recorded."""
        return EvalRecipe.model_validate(self.meta.get("eval") or {})

    @property
    def crop(self) -> int | None:
        """Side of the training crop, the default window of sliding inference."""
        crop = self.meta.get("crop")
        return None if crop is None else int(crop)


def save_bundle(
    folder: str | Path, model: Network, task: Task | None = None, *, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write model.safetensors and model.json; each replaces an earlier file only when complete.

    Args:
        folder: created if missing.
        model: its `spec` must describe it, as it does for models of `halfmask.create_model` and of methods.
        task: what it predicts; `None`: as its `spec` says.
        extra: further plain data for model.json, for example `{"step": 4000, "eval": {...}}`.

    Returns:
        The path of model.json.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier files stay intact. Or the model
            has no spec.
    """
    folder = Path(folder)
    if not model.spec:
        raise CheckpointError(
            f"{folder / _META}: the model has no spec, so it could not be built again. "
            "Make it with halfmask.create_model or a method's builder, or set Model.spec."
        )
    task = read_task(model.members[0].spec["task"]) if task is None else task
    # Both are on the disk before either replaces its predecessor: one new and one old file would be no bundle.
    with atomic_path(folder / _META) as meta_part, atomic_path(folder / _WEIGHTS) as weights_part:
        save_file(_plain_state(model), weights_part)
        meta = _describe(model, task) | {"sha256": digest_of(weights_part)}
        if meta["license"] is None:  # of a network built anew, which does not know what its training started from
            meta["license"] = dict(extra or {}).get("license")
        meta_part.write_text(json_text({**dict(extra or {}), **meta}), encoding="utf-8", newline="\n")
        flush(meta_part)
        weights_part.chmod(meta_part.stat().st_mode)  # safetensors lets nobody else read its files
    return folder / _META


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Open a run folder, a bundle folder, its model.json or its model.safetensors.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or does not fit the model.
    """
    folder = bundle_folder(path)
    meta = read_meta(folder / _META)
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing. A bundle is model.json and model.safetensors: copy both.", "H407")
    try:
        state = load_file(weights, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights}: damaged or cut short ({error}). Copy it again, or save it anew.", "H402"
        ) from error
    if digest_of(weights) != meta["sha256"]:
        raise CheckpointError(
            f"{weights} is not the file that {_META} describes (SHA-256 differs). Copy both files of the bundle again.",
            "H406",
        )
    model = build_from_meta(meta, folder / _META).to(device)
    _load_state(model, state, weights)
    return Bundle(model.eval(), read_task(meta["task"]), meta, folder)


def build_from_meta(meta: Mapping[str, Any], path: Path) -> Network:
    """Build the network that a model.json describes, with random weights.

    Raises:
        CheckpointError: the entry is damaged, or the network is unknown here.
    """
    try:
        return build_network(meta["model"])
    except RecipeError as error:
        raise CheckpointError(f"{path}: the model cannot be built here. {error}", error.code) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(path, "model", error) from error


def _incomplete(path: Path, entry: str, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {error}"
    return CheckpointError(f"{path}: the {entry} entry is incomplete ({reason}). Copy the file again.", "H402")


def _describe(model: Network, task: Task) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": _ENSEMBLE_VERSION if "ensemble" in model.spec else FORMAT_VERSION,
        "halfmask": __version__,
        "task": asdict(task),
        "model": model.spec,
        "classes": list(task.classes),
        "bands": model.mean.numel(),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "crop": model.spec.get("crop"),
        "license": _license(model),
    }


def bundle_folder(path: str | Path) -> Path:
    """Return the folder of a bundle, named by the folder itself or by one of its files.

    Of a staged run it is the last stage; of a run whose twin is shipped (`eval.ship=overall`) the twin, but the run's
    own where one of its files is named.

    Raises:
        CheckpointError: there is none, or there are several below.
    """
    path = Path(path)
    named = path.name in {_META, _WEIGHTS}
    path = path.parent if named else path
    if (path / _META).is_file():
        return path if named else shipped_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give a run folder, a bundle folder or a model.json.", "H407")
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a bundle. Give the folder that holds model.json and model.safetensors.", "H407"
        )
    if (last := _last_stage(path)) is not None:
        return last
    if bundles := sorted(entry.parent.name for entry in path.glob(f"*/{_META}")):
        raise CheckpointError(
            f"{path} holds several models (of several domains, or several runs): {', '.join(bundles)}. Name the one "
            f"whose classes are wanted, for example {path / bundles[0]}",
            "H407",
        )
    raise CheckpointError(
        f"{path} holds no {_META}. A run writes it with its first validation (or at its end). Give another folder, or "
        f"go on with the run: halfmask train --resume {path}",
        "H407",
    )


def shipped_folder(run: Path) -> Path:
    """Return the run, or what is in it of another one that is shipped in its place."""
    try:
        name = json.loads((run / COMPARED).read_text(encoding="utf-8"))["shipped"]
    except (OSError, ValueError, KeyError, TypeError):
        return run
    return run / name if name in {"twin", "control"} and (run / name / _META).is_file() else run


def own_bundle(run: str | Path) -> Path:
    """Return what names the bundle of a run itself, also where its twin is shipped."""
    return Path(run) / _META if (Path(run) / _META).is_file() else Path(run)


def _last_stage(path: Path) -> Path | None:
    folders = [path / name for name in names_in(path / STAGES)]
    return next((folder for folder in reversed(folders) if (folder / _META).is_file()), None)


def names_in(path: Path) -> tuple[str, ...]:
    """Read a file of names, such as those of the stages of a run; a missing one has none.

    Raises:
        CheckpointError: damaged.
    """
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). Restore the file.", "H402") from None
    if not isinstance(names, list | dict) or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{path}: not a list of names. Restore the file.", "H402")
    return tuple(names)


def read_meta(path: Path) -> dict[str, Any]:
    """Read a model.json. Raises CheckpointError: damaged, of another kind or version, or incomplete."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). Copy it again.", "H402") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a halfmask bundle (its `format` is not {FORMAT!r}).", "H403")
    version = meta.get("format_version")
    if version not in (FORMAT_VERSION, _ENSEMBLE_VERSION):
        raise CheckpointError(
            f"{path}: bundle format {version}, this version reads {FORMAT_VERSION} and {_ENSEMBLE_VERSION}. It was "
            f"written by halfmask {meta.get('halfmask', '?')}; install that version, or save the bundle anew.",
            "H404",
        )
    absent = [key for key in _NEEDED if key not in meta]
    if absent:
        raise CheckpointError(f"{path}: the entries {', '.join(absent)} are missing. Save the bundle anew.", "H402")
    try:
        read_task(meta["task"])
    except ValueError as error:
        raise _incomplete(path, "task", error) from error
    return meta


def _load_state(model: Network, state: Mapping[str, Tensor], path: Path) -> None:
    if problems := misfits(state, model.state_dict()):
        raise CheckpointError(
            f"{path} does not fit the model that {_META} describes; use the halfmask version named there, "
            f"or save the bundle anew.\n{bullet_list(problems, limit=20)}",
            "H405",
        )
    # `assign` keeps the dtype of the file. Copies, because tensors mapped from the file are not aligned: other
    # kernels run on them, and the logits would differ from the saved model's in the last digit.
    model.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)


def _plain_state(model: Network) -> dict[str, Tensor]:
    """Return the state dict on the CPU; tensors that share memory are copied, because safetensors refuses them."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        state[key] = value.clone() if address in seen else value
        seen.add(address)
    return state


def _license(model: Network) -> str | None:
    """Return the license of the encoders' published weights, if training started from them."""
    found = []
    for member in model.members:
        if (member.spec.get("model", {}).get("encoder") or {}).get("weights"):
            found.append(member.encoder.weights_license or "see the source of the weights")
    return "; ".join(dict.fromkeys(found)) or None
