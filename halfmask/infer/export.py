"""Export a trained model as one file that runs without halfmask: ONNX, or a program of `torch.export`.

    image (B, C, H, W) float32, RGB in [0, 1]  ->  logits (B, K, H, W) float32

Normalization is inside the graph; classes, colors, and everything else a user of the file must know are inside the
file. The exported model is run on real images beside the original, with several batch sizes and image sizes where the
model allows them: the share of pixels with the same class decides whether the file can be trusted.

    report = export("runs/field", format="onnx")
    report.agreement            # 1.0
"""

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from halfmask import __version__
from halfmask.atomic import atomic_path, write_json
from halfmask.data.folder.images.decode import read_image
from halfmask.data.splits.split import open_dataset
from halfmask.errors import CheckpointError, DataError, MissingExtraError, ParityError, RecipeError, nearest
from halfmask.infer.bundle import Bundle, load_bundle, own_bundle
from halfmask.infer.predict.predict import plan
from halfmask.infer.runs import open_run
from halfmask.models.model import Network
from halfmask.palette import palette_of
from halfmask.recipe.read import DataRecipe

Format = Literal["onnx", "torch"]
Shapes = Literal["batch and size", "batch", "fixed"]
T = TypeVar("T")
Runner = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B K *S"]]

_log = logging.getLogger(__name__)

LEAST_AGREEMENT = 0.999
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_METADATA = "halfmask.json"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how far it equals the original.

    Args:
        file: the exported model.
        shapes: what may vary in a call: `batch and size`, `batch`, or nothing (`fixed`).
        size: height and width of the trial input; the only ones allowed unless sizes may vary.
        multiple: allowed heights and widths are multiples of it.
        images: how many images were compared.
        agreement: share of pixels (or images) with the same class as the original, 0 to 1.
        largest_difference: of the logits.
    """

    file: Path
    shapes: Shapes
    size: tuple[int, int]
    multiple: int
    images: int
    agreement: float
    largest_difference: float


def export(
    run: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    size: tuple[int, int] | None = None,
    input: str | Path | None = None,
    images: int = 8,
    overwrite: bool = False,
) -> ExportReport:
    """Export the shipped predictor of a run, or any bundle, and compare it with the original on real images.

    Args:
        run: run folder, bundle folder or model.json.
        out: file to write; default: `model.onnx` or `model.pt2` beside the bundle.
        format: `onnx`, or `torch` (a program of torch.export).
        size: height and width of the trial input; default: the training crop. Rounded up to what the model takes.
        input: folder, pattern or file of images to compare on; default: images of the run's dataset.
        images: how many to compare.
        overwrite: replace a file that exists.

    Raises:
        CheckpointError: no bundle, a damaged one, or a model that cannot be exported.
        DataError: no image to compare on, or the file exists.
        MissingExtraError: ONNX packages are not installed.
        ParityError: too few pixels get the same class; the file is removed.
        RecipeError: an unknown format, or a bare bundle and no `input`.
    """
    if format not in _SUFFIXES:
        raise RecipeError(
            f"format {format!r} is unknown.{nearest(format, _SUFFIXES)} Known: {', '.join(_SUFFIXES)}.", "H303"
        )
    if format == "onnx":
        _need_onnx()
    opened = open_run(run, (), sections=("eval", "data"))
    bundle = load_bundle(own_bundle(opened.folder))
    file = Path(out) if out is not None else opened.folder / f"model{_SUFFIXES[format]}"
    if file.exists() and not overwrite:
        raise DataError(f"{file} exists already. Replace it with --overwrite, or name another file with --out.", "H408")
    samples = sample_images(bundle, opened.data, input, images)
    multiple = side_multiple(bundle.model)
    height, width = size or (bundle.crop or 256,) * 2
    trial = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    program, shapes = trace(bundle.model, trial, dates=2 if bundle.task.kind == "change" else None)
    with atomic_path(file) as part:
        save: Callable[..., None] = _save_onnx if format == "onnx" else _save_torch
        save(program, part, _metadata(bundle, shapes, trial))
        runner = _open_onnx(part) if format == "onnx" else _open_torch(part)
        agreement, difference, compared = _compare(bundle, runner, samples, shapes, trial)
        if agreement < LEAST_AGREEMENT:
            raise ParityError(
                f"{file}: only {agreement:.2%} of the pixels get the class that the original gives (needed: "
                f"{LEAST_AGREEMENT:.1%}); the file was not kept. Export in the other format, or report the model."
            )
    report = ExportReport(file, shapes, trial, multiple, compared, agreement, difference)
    write_json(file.with_name(f"{file.name}.parity.json"), asdict(report) | {"file": file.name})
    return report


def sample_images(bundle: Bundle, data: DataRecipe, input: str | Path | None, count: int) -> list[np.ndarray]:
    """Read images to compare on, uint8 (*T, H, W, C): of an input, or spread over the run's dataset.

    Raises:
        DataError: there is none.
        RecipeError: nothing says where images are.
    """
    if input is None and data.root is None:
        raise RecipeError("the bundle does not say where images are. Name some to compare on: --input DIR.")
    if input is not None:
        limits = bundle.meta.get("range")
        value_range = None if limits is None else (float(limits[0]), float(limits[1]))
        paths = [job.image for job in plan(input, "unused")]
        channels = bundle.model.mean.numel()
        return [read_image(path, channels=channels, value_range=value_range) for path in _spread(paths, count)]
    whole = {"split": None, "labeled": None, "unlabeled": None, "val": "auto"}
    dataset = open_dataset(data.model_copy(update=whole))
    ids = sorted({id for part in ("val", "test", "train") for id in dataset.ids(part)})
    return [dataset.read_image(id) for id in _spread(ids, count)]


def _spread(items: list[T], count: int) -> list[T]:
    return items[:: max(len(items) // count, 1)][:count]


def side_multiple(model: Network) -> int:
    """Return the pixels that heights and widths of an exported model must be multiples of.

    The model itself may take any size; rounding at each stride would make the traced shapes depend on the remainder.
    """
    return math.lcm(model.size_multiple, *(stride for member in model.members for stride in member.encoder.strides))


def trace(
    model: Network, size: tuple[int, int], dates: int | None = None
) -> tuple[torch.export.ExportedProgram, Shapes]:
    """Trace a model with as much freedom of shape as it allows.

    Args:
        model: in eval mode.
        size: height and width of the trial input, multiples of `side_multiple(model)`.
        dates: images per input of a change detector.

    Raises:
        CheckpointError: the model cannot be traced.
    """
    multiple, bands = side_multiple(model), model.mean.numel()
    height, width = (multiple * torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns"))
    batch = torch.export.Dim("batch", min=1, max=1024)
    last = 3 if dates is None else 4
    free: list[tuple[Shapes, dict[int, Any] | None]] = [
        ("batch and size", {0: batch, last - 1: height, last: width}),
        ("batch", {0: batch}),
        ("fixed", None),
    ]
    failures = []
    for name, shapes in free:
        # Equal sides would be taken for one and the same dimension.
        sides = (size[0], size[1] + multiple) if name == "batch and size" and size[0] == size[1] else size
        example = torch.rand(2, *(() if dates is None else (dates,)), bands, *sides)
        try:
            with _quiet():
                return torch.export.export(model, (example,), dynamic_shapes=(shapes,) if shapes else None), name
        except Exception as error:  # whatever tracing raises; the next, stricter form may work
            reason = f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            _log.debug("torch.export with free %s", reason)
            failures.append(reason)
    raise CheckpointError(
        "this model cannot be exported: torch.export fails with free and with fixed shapes.\n  "
        + "\n  ".join(failures)
        + "\n  Use the bundle with halfmask predict instead.",
        "H410",
    )


def _compare(
    bundle: Bundle, runner: Runner, samples: list[np.ndarray], shapes: Shapes, trial: tuple[int, int]
) -> tuple[float, float, int]:
    """Return the share of equal classes, the largest difference of logits, and the number of images."""
    same = total = 0
    largest = 0.0
    for number, pixels in enumerate(samples):
        image = _pixels(bundle, pixels, None if shapes == "batch and size" else trial)
        # Every other call with a batch of another size, where that may vary.
        if shapes == "fixed" or number % 2:
            image = torch.cat((image, image.flip(-1)))
        with torch.inference_mode():
            wanted = bundle.model(image).float()
        found = runner(image).detach()
        same += int((wanted.argmax(1) == found.argmax(1)).sum())
        total += wanted.argmax(1).numel()
        largest = max(largest, float((wanted - found).abs().max()))
    return same / max(total, 1), largest, len(samples)


def _pixels(
    bundle: Bundle, pixels: UInt8[np.ndarray, "*T H W C"], size: tuple[int, int] | None
) -> Float[Tensor, "1 *T C h w"]:
    """Return one image (or pair) in [0, 1], brought to a size the model takes."""
    image = torch.from_numpy(np.moveaxis(pixels, -1, -3).copy())[None].float() / 255
    if bundle.task.kind == "change" and image.ndim == 4:  # a second date that differs, so that something changes
        image = torch.stack((image, image.flip(-1)), dim=1)
    if size is None:
        multiple = side_multiple(bundle.model)
        height, width = (max(side // multiple, 2) * multiple for side in image.shape[-2:])
        size = (height, width)
    resized = F.interpolate(image.flatten(0, -4), size, mode="bilinear", align_corners=False)
    return resized.reshape(*image.shape[:-2], *size)


def _metadata(bundle: Bundle, shapes: Shapes, size: tuple[int, int]) -> dict[str, Any]:
    model, task = bundle.model, bundle.task
    return {
        "halfmask": __version__,
        "task": task.kind,
        "classes": list(task.classes),
        "palette": [list(color) for color in palette_of(task)],
        "ignore_index": task.ignore_index,
        "input": "image, float32, (batch, bands, height, width), values in [0, 1]; normalization is inside",
        "output": "logits, float32, (batch, classes, height, width)",
        "bands": model.mean.numel(),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "range": bundle.meta.get("range"),
        "shapes": shapes,
        "size": list(size),
        "multiple": side_multiple(model),
        "license": bundle.meta.get("license"),
        "weights_sha256": bundle.meta["sha256"],
    }


def _save_onnx(program: torch.export.ExportedProgram, file: Path, metadata: dict[str, Any]) -> None:
    with _quiet():
        made = torch.onnx.export(
            program, (), input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert made is not None
    for key, value in metadata.items():
        made.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    made.save(file)


def _save_torch(program: torch.export.ExportedProgram, file: Path, metadata: dict[str, Any]) -> None:
    torch.export.save(program, file, extra_files={_METADATA: json.dumps(metadata)})


def _open_onnx(file: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def _open_torch(file: Path) -> Runner:
    with file.open("rb") as opened:
        return torch.export.load(opened).module()


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("export to ONNX", "export") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the dozens of lines that tracing and conversion log about their own work."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
