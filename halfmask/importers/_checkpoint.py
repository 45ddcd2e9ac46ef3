"""From an official checkpoint file to the bundle that training writes.

import_checkpoint("pascal_92.pth", "models/pascal_92")             # format and classes are told by the file
import_checkpoint("levir.pth", "models/levir", task="change", dataset="levir")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from halfmask.atomic import atomic_path
from halfmask.errors import CheckpointError, RecipeError, nearest
from halfmask.importers._classes import known_dataset, make_task
from halfmask.importers._importer import Importer
from halfmask.infer.bundle import save_bundle
from halfmask.models.build import Builder
from halfmask.models.key_rules import check_fit, rename
from halfmask.models.weights import read_content, tensors_of
from halfmask.plugins import arguments, names, resolve
from halfmask.recipe.read import Recipe, load
from halfmask.run.folder import RunDir
from halfmask.task import Kind, Task
from halfmask.written import digest_of

ENCODER_FILE = "encoder.safetensors"
_CHANGEABLE = ("model.", "eval.", "data.crop=")
_HISTORY = ("epoch", "previous_best", "previous_best_ema", "monitor_best")
_CURE = (
    "Another network than the published ones? Say what the shapes cannot tell: model.encoder.heads=2, "
    "model.encoder.output_stride=8 ... (halfmask list encoders NAME)."
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import wrote.

    Args:
        path: folder of the bundle, or the file of encoder weights.
        format: name of the importer.
        predictor: which network of the file; empty for encoder weights.
        entry: its place in the file; empty for a file that holds one network only.
        classes: class names; none for encoder weights.
        parameters: number of parameters.
        dropped: official names of tensors that are left out.
        use: how to go on.
    """

    path: Path
    format: str
    predictor: str
    entry: str
    classes: tuple[str, ...]
    parameters: int
    dropped: tuple[str, ...]
    use: str


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    predictor: str | None = None,
    task: Kind = "segmentation",
    classes: str | Path | Sequence[str] | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    partial: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Turn an official checkpoint into a bundle (or into a file of encoder weights).

    Only tensors and plain values are read from the file; no code in it is run.

    Args:
        file: the checkpoint.
        out: folder for `model.safetensors` and `model.json`, or for `encoder.safetensors`.
        format: name of an importer; `None` tells it by the names of the tensors.
        predictor: `teacher` or `student`, where the file holds both; `None` takes the one published numbers are of.
        task: `segmentation` or `change`; no file tells.
        classes: names, a text of names with commas, a file of them, or the folder of a dataset that names them; `None`
            looks at `dataset` and the number of classes (21 Pascal VOC, 19 Cityscapes, 150 ADE20K, 81 COCO).
        dataset: layout of the dataset, which also chooses crop and evaluation protocol of the published models.
        overrides: dotted keys of `model` and `eval`, and `data.crop`, for what the file does not tell.
        partial: accept a file of which only a part can be read.
        overwrite: replace what lies in `out`.

    Raises:
        CheckpointError: broken or foreign file, or unexpected, missing and differently shaped tensors in one list.
        RecipeError: unknown format, wrong override, or classes that cannot be told.
        DataError: `out` is not empty, or no dataset in the folder of `classes`.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist. Give the checkpoint file to import.", "H407")
    _check_overrides(overrides)
    RunDir(out).check_free(overwrite=overwrite)
    content = read_content(path)
    networks = _networks(content)
    format, importer = _choose(path, format, networks)
    try:
        predictor, entry, state = _pick(importer, networks, predictor)
        importer.refuse(state, partial)
        if importer.holds == "encoder":
            dropped = rename(state, importer.rules).dropped
            section = importer.section(state, Task(task, ()))
            return _write_encoder(path, Path(out), format, section, overrides, tuple(dropped))
        goal = make_task(task, importer.classes(state), classes, dataset)
        dataset = dataset or known_dataset(task, goal.n_classes)
        recipe = _recipe(importer, importer.section(state, goal), dataset, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{path} as {format}: {error}", error.code) from error
    source = {"file": path.name, "sha256": digest_of(path), "format": format, "predictor": predictor, "entry": entry}
    source |= {key: content[key] for key in _HISTORY if isinstance(content.get(key), int | float)}
    return _write_bundle(path, Path(out), importer, state, goal, recipe, source)


def _networks(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the tables of tensors in a file by entry; a file that is one such table has it under an empty name."""
    found = {key: tensors_of(value) for key, value in content.items() if isinstance(value, dict)}
    found = {key: state for key, state in found.items() if state}
    return found or {key: state for key, state in {"": tensors_of(content)}.items() if state}


def _choose(path: Path, format: str | None, networks: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, Importer]:
    """Find the importer by name, or by the names of the tensors."""
    if format is not None:
        return format, resolve("importers", format)()
    known = names("importers")
    for name in known:
        importer: Importer = resolve("importers", name)()
        if any(importer.recognizes(state) for state in networks.values()):
            return name, importer
    shown = [key for state in networks.values() for key in state][:4]
    holds = f"Its tensors: {', '.join(shown)}, ..." if shown else "It holds no tensors."
    raise CheckpointError(
        f"{path}: a checkpoint of none of the formats {', '.join(known)}. {holds} Checkpoints of halfmask itself need "
        "no import: name their run folder. An encoder of another library is loaded with model.encoder.weights=FILE.",
        "H403",
    )


def _pick(
    importer: Importer, networks: Mapping[str, dict[str, Tensor]], predictor: str | None
) -> tuple[str, str, dict[str, Tensor]]:
    """Take the wanted network of a file: predictor, entry, tensors."""
    if predictor is not None and predictor not in importer.networks:
        raise RecipeError(
            f"there is no predictor {predictor!r} in files of this format.{nearest(predictor, importer.networks)} "
            f"Known: {', '.join(importer.networks)}",
            "H303",
        )
    wanted = importer.networks if predictor is None else {predictor: importer.networks[predictor]}
    for name, entry in wanted.items():
        if entry in networks:
            return name, entry, networks[entry]
    student = predictor in (None, "student")
    for entry in ("state_dict", "model", ""):
        if student and entry in networks:
            return "student", entry, networks[entry]
    raise CheckpointError(
        f"no network {' or '.join(map(repr, wanted.values()))} in it; it holds {', '.join(networks) or 'no tensors'}. "
        "Take another one with --predictor.",
        "H403",
    )


def _recipe(importer: Importer, section: dict[str, Any], dataset: str, overrides: Sequence[str]) -> Recipe:
    protocol = dict(importer.protocols.get(dataset, importer.protocols[""]))
    crop = importer.crop.get(dataset, importer.crop[""])
    return load({"model": section, "eval": protocol, "data": {"crop": crop}}, overrides)


def _write_bundle(
    path: Path,
    out: Path,
    importer: Importer,
    state: dict[str, Tensor],
    task: Task,
    recipe: Recipe,
    source: dict[str, Any],
) -> Imported:
    model = Builder(recipe.model, task, crop=recipe.data.crop, pretrained=False)()
    made = rename(state, importer.rules)
    own = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std")}
    check_fit(made, own, f"{path} as {source['format']}", _CURE)
    model.load_state_dict({**made.state, "mean": model.mean, "std": model.std})
    if out.is_dir():  # empty, or to be overwritten
        place = RunDir(out)
        place.create(overwrite=True)  # the recipe of an earlier run there would not be this model's
        place.checkpoints.rmdir()
    save_bundle(out, model, task, extra={"eval": recipe.eval.model_dump(mode="json"), "imported": source})
    told = source["format"], source["predictor"], source["entry"], task.classes
    use = f"halfmask evaluate {out} --data DIR; halfmask predict {out} IMAGES"
    return Imported(out, *told, sum(one.numel() for one in model.parameters()), tuple(made.dropped), use)


def _write_encoder(
    path: Path, out: Path, format: str, section: dict[str, Any], overrides: Sequence[str], dropped: tuple[str, ...]
) -> Imported:
    """Load the file into our encoder, which checks it, and write that encoder's tensors."""
    entry = load({"model": section}, overrides).model.encoder
    cls = resolve("encoders", entry.name)
    encoder = cls(**arguments(cls, entry.params | {"weights": str(path)}))
    state = {key: value.contiguous() for key, value in getattr(encoder, "net", encoder).state_dict().items()}
    with atomic_path(out / ENCODER_FILE) as file:
        save_file(state, file)
    size = f" model.encoder.size={entry.params['size']}" if "size" in entry.params else ""
    use = f"halfmask train RECIPE model.encoder.name={entry.name}{size} model.encoder.weights={out / ENCODER_FILE}"
    parameters = sum(one.numel() for one in encoder.parameters())
    return Imported(out / ENCODER_FILE, format, "", "", (), parameters, dropped, use)


def _check_overrides(overrides: Sequence[str]) -> None:
    foreign = [text for text in overrides if not text.startswith(_CHANGEABLE)]
    if foreign:
        raise RecipeError(f"{', '.join(foreign)}: an import takes keys of model and eval, and data.crop, only.")
