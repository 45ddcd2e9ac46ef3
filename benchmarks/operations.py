"""Time every fast operation of halfmask against its textbook form.

python benchmarks/operations.py                      all rows, half an hour on a slow CPU
python benchmarks/operations.py ohem ema --out FILE  some rows; FILE is written after each row, and a second call with
                                                     the same FILE measures only the rows that are missing
python benchmarks/operations.py --list               the rows and their targets

Both forms of a row get the same inputs, and their results are compared first; a row that disagrees is not timed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _networks import PARTS, STEPS, builder_of, network
from _oracles import class_map, confusion, losses, mixing, pseudo, strong_views
from _pairs import ABSOLUTE, Pair, Row, Setting, close, equal_but, forms, holds, measure, memory_of
from _pipelines import PIPELINES
from torch import Tensor
from torch.utils.benchmark import Compare

from halfmask.bench.speed import device_name
from halfmask.errors import nearest
from halfmask.infer.inference import probabilities, upsampled_argmax
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.losses.cross_entropy import hard_pixels, ohem_cross_entropy
from halfmask.losses.upsampled import upsampled_cross_entropy
from halfmask.recipe.read import EvalRecipe
from halfmask.run.folder import environment
from halfmask.teaching.pseudo_label import pseudo_label
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment, StrongParams

Tensors = tuple[Tensor, ...]
IGNORE = 255
FORMAT = 1


def _pseudo(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = setting.normal(images, classes, side, side) * 4
    traffic = logits.nbytes + images * side * side * (8 + 4)  # label and confidence are written
    return forms(lambda form: form(logits), pseudo.pseudo_label, pseudo_label, close(atol=1e-5), traffic=traffic)


def _cutmix(setting: Setting, images: int = 8) -> Pair:
    side = setting.size(518, 32)
    own = setting.normal(images, 3, side, side)
    box = box_mask((images, side, side), p=1.0, device=setting.device, generator=setting.generator())
    traffic = 2 * own.nbytes + box.nbytes  # of two pixels one is read
    return forms(lambda form: form(box, own)[0], mixing.paste, paste, close(atol=0.0), traffic=traffic)


def _labels(setting: Setting, classes: int, images: int, side: int) -> Tensor:
    target = setting.integers(classes, images, side, side)
    target[:, : side // 20 + 1] = IGNORE
    return target


def _ohem_loss(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = (setting.normal(images, classes, side, side) * 2).requires_grad_()
    target = _labels(setting, classes, images, side)

    def run(form: Callable[..., Tensor]) -> Tensors:
        loss = form(logits, target, threshold=0.05, min_kept=target.numel() // 3, ignore_index=IGNORE)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    traffic = 2 * logits.nbytes + target.nbytes  # logits are read, their gradient is written
    agree = close(atol=1e-5, rtol=1e-5)
    return forms(run, losses.ohem_cross_entropy, ohem_cross_entropy, agree, traffic=traffic, graph=True)


def _ohem(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = setting.normal(images, classes, side, side) * 2
    target = _labels(setting, classes, images, side)
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")  # there in any case
    limits = {"threshold": 0.05, "min_kept": target.numel() // 3}
    return Pair(
        lambda: losses.hard_pixels(logits, target, **limits, ignore_index=IGNORE),
        lambda: hard_pixels(loss, target != IGNORE, **limits),
        equal_but(1e-4),
        traffic=loss.nbytes + target.numel(),
    )


def _up_ce(setting: Setting, classes: int, images: int) -> Pair:
    side, cells = setting.size(518, 40), setting.size(296, 24)  # DPT's logits have 8 / 14 of the pixels
    logits = setting.normal(images, classes, cells, cells).requires_grad_()
    target = _labels(setting, classes, images, side)

    def run(form: Callable[..., Tensor]) -> Tensors:
        loss = form(logits, target, True)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    traffic = 2 * logits.nbytes + target.nbytes
    agree = close(atol=1e-6, rtol=1e-3)
    return forms(run, losses.upsampled_cross_entropy, upsampled_cross_entropy, agree, traffic=traffic, graph=True)


def _strong(setting: Setting, images: int = 8) -> Pair:
    side = setting.size(518, 32)
    image = torch.rand(images, 3, side, side, generator=setting.generator()).to(setting.device)
    augment = StrongAugment()
    params = augment.sample(images, "cpu", setting.generator())
    params = StrongParams(*(tensor.to(setting.device) for tensor in params))
    return Pair(
        lambda: strong_views.strong_views(image, **params._asdict()),
        lambda: augment.apply_params(image, params),
        close(atol=1e-4),
        traffic=2 * image.nbytes,
    )


PIXELS = [
    *(
        Row(
            "pseudo-label",
            f"K={classes}, {images} x 518x518",
            partial(_pseudo, classes=classes, images=images),
            "label and confidence: softmax, argmax, maximum | maximum and log-sum-exp",
            cpu={"time": least},
        )
        for classes, images, least in ((21, 2, 3.0), (150, 1, 1.8))
    ),
    Row("cutmix", "8 x 518x518", _cutmix, "paste rectangles: boolean indexing | where", cpu={"time": 10.0}),
    *(
        Row(id, f"K={classes}, {images} x 518x518", partial(work, classes=classes, images=images), title, cpu=targets)
        for id, work, title, targets in (
            ("ohem", _ohem, "choose hard pixels: softmax and sort | pixel losses and k-th value", {"time": 6.0}),
            ("ohem-loss", _ohem_loss, "loss of hard pixels: softmax, sort, boolean index | k-th value, mask", {}),
        )
        for classes, images in ((21, 2), (150, 1))
    ),
    *(
        Row(
            "up-ce",
            f"K={classes}, 4 x 518x518",
            partial(_up_ce, classes=classes, images=4),
            "upsample and cross-entropy, forward and backward: whole logits | bands of rows (above 512 MiB)",
            cpu={"time": least},
            cuda=cuda,
        )
        for classes, least, cuda in ((21, 0.97, {}), (150, 1.1, {"peak": 5.0}))
    ),
    Row("strong-views", "8 x 518x518", _strong, "color jitter, gray, blur: image by image, six cases | fused passes"),
]


# --- evaluation ------------------------------------------------------------------------------------------------


def _metrics(setting: Setting, classes: int, height: int, width: int) -> Pair:
    shape = (height, width) if not setting.quick else (32, 64)
    # Blocks of one class, as in class maps: the speed of a histogram depends on how often neighbors are equal.
    cells = setting.integers(classes, 2, shape[0] // 16, shape[1] // 16)
    prediction, target = cells.repeat_interleave(16, 1).repeat_interleave(16, 2).unbind(0)
    target = torch.where(torch.rand(shape, generator=setting.generator()).to(setting.device) < 0.1, 255, target)
    prediction, target = prediction.to(torch.uint8), target.to(torch.uint8)

    def plain() -> list[Tensor]:
        counted = confusion.areas_by_histogram(prediction.cpu().numpy(), target.cpu().numpy(), classes)
        return [torch.from_numpy(np.asarray(area, dtype=np.float64)) for area in counted]

    def fast() -> list[Tensor]:
        matrix = ConfusionMatrix(classes, device=setting.device)
        matrix.update(prediction, target)
        counts = matrix.counts
        hits, targets = counts[:-1].diagonal(), counts[:-1].sum(1)
        return [hits.double().cpu(), (targets + counts.sum(0) - hits).double().cpu(), targets.double().cpu()]

    return Pair(plain, fast, close(atol=0.0), traffic=prediction.nbytes + target.nbytes)


def _class_map(setting: Setting, classes: int, height: int, width: int) -> Pair:
    size = (height, width) if not setting.quick else (64, 96)
    logits = setting.normal(1, classes, size[0] // 4, size[1] // 4)
    traffic = logits.nbytes + size[0] * size[1]
    return forms(
        lambda form: form(logits, size, align_corners=False),
        class_map.upsampled_argmax,
        upsampled_argmax,
        equal_but(1e-4),
        traffic=traffic,
    )


def _windows(setting: Setting) -> Pair:
    size, width = (32, 64) if setting.quick else (512, 1024), setting.size(32, 4)
    encoder = {"name": "resnet", "depth": 18, "width": width, "output_stride": 16}
    decoder = {"name": "deeplabv3plus", "aspp": width, "low": width // 2, "embedding": width}
    model = network(setting, builder_of(setting, encoder, decoder, classes=19)).eval()
    image = torch.rand(1, 3, *size, generator=setting.generator()).to(setting.device)

    def slide(batch: int) -> Tensor:
        return probabilities(model, image, EvalRecipe(mode="slide", window=size[0] // 2, batch=batch))

    return forms(slide, 1, 8, close(atol=1e-5), flops=True)


EVALUATION = [
    *(
        Row(
            id,
            f"K={classes}, {height}x{width}",
            partial(work, classes=classes, height=height, width=width),
            title,
            cpu=cpu,
        )
        for id, work, title, cpu in (
            ("eval-metrics", _metrics, "intersections, unions: three numpy histograms | one bincount", {"time": 1.4}),
            ("eval-class-map", _class_map, "best class: all logits | bands of rows", {"time": 1.5, "peak": 20.0}),
        )
        for classes, height, width in ((19, 1024, 2048), (150, 1024, 1024))
    ),
    Row(
        "eval-windows",
        "512x1024, windows of 256, ResNet-18",
        _windows,
        "sliding windows: one | eight per forward pass",
        cuda={"time": 2.0},
    ),
]

ROWS = [*PARTS, *PIXELS, *EVALUATION, *PIPELINES, *STEPS]


# --- the command -----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    ours = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ours.add_argument("ids", nargs="*", metavar="ROW", help="rows to measure; default: all")
    ours.add_argument("--list", action="store_true", help="show the rows and their targets, and stop")
    ours.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and agree?")
    ours.add_argument("--device", default="cpu", help="cpu or cuda")
    ours.add_argument("--threads", type=int, default=1, help="CPU threads")
    ours.add_argument("--rounds", type=int, default=5, help="timed rounds of plain, fast, fast, plain")
    ours.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    ours.add_argument("--check", action="store_true", help="exit with 1 if a ratio misses its target by over 15 %%")
    ours.add_argument("--data", type=Path, metavar="DIR", help="a dataset whose files are loaded besides rendered ones")
    ours.add_argument("--out", type=Path, metavar="FILE", help="file of the results, written after each row")
    ours.add_argument("--memory-of", choices=("plain", "fast"), help=argparse.SUPPRESS)
    ours.add_argument("--size", help=argparse.SUPPRESS)
    return ours


def find(ids: list[str]) -> list[Row]:
    """Return the rows of some ids, or all; an unknown id ends the program."""
    known = list(dict.fromkeys(row.id for row in ROWS))
    for id in ids:
        if id not in known:
            raise SystemExit(f"no row {id!r}.{nearest(id, known)} Known: {', '.join(known)}.")
    return [row for row in ROWS if not ids or row.id in ids]


def main() -> None:
    """Run the rows that the command line names."""
    options = parser().parse_args()
    rows = find(options.ids)
    if options.list:
        print("\n".join(_listed(row) for row in rows))
        return
    torch.set_num_threads(options.threads)
    rounds, seconds = (2, 0.0) if options.quick else (options.rounds, 0.2)
    setting = Setting(torch.device(options.device), options.quick, rounds, seconds, options.memory, options.data)
    if options.memory_of:
        [row] = [row for row in rows if row.size == options.size]
        print(json.dumps(memory_of(row, options.memory_of, setting)))
        return
    rows = [row for row in rows if setting.device.type in row.devices and (options.data or not row.needs_data)]
    results = Results(setting, options.out)
    times = []
    for row in rows:
        if results.has(row):
            print(f"{row.id}, {row.size}: in {options.out} already", flush=True)
            continue
        result, measured = measure(row, setting, Path(__file__))
        results.add(result)
        times += measured
        print(_line(result), flush=True)
    if times:
        Compare(times).print()
    if options.quick:
        print("--quick: tiny sizes, two rounds. The ratios say nothing.")
    sys.exit(results.failed(rows, options.check))


class Results:
    """The file of results; what an earlier call with the same settings wrote there is kept."""

    def __init__(self, setting: Setting, out: Path | None) -> None:
        self.out = out
        state = environment()
        # Results are made to be shared: of files and folders only their names.
        state["command"] = [Path(word).name for word in state["command"]]
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "device": device_name(setting.device),
            "environment": state,
            "threads": torch.get_num_threads(),
            "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "settings": {"device": setting.device.type, "quick": setting.quick, "rounds": setting.rounds},
            "rows": [],
        }
        if out is not None and out.exists():
            earlier = json.loads(out.read_text(encoding="utf-8"))
            for key in ("format", "device", "threads", "settings"):
                if earlier[key] != self.content[key]:
                    raise SystemExit(f"{out} holds {key} {earlier[key]}, not {self.content[key]}: take another --out.")
            if earlier["environment"]["packages"] != state["packages"]:
                raise SystemExit(f"{out} was measured with other versions of packages: take another --out.")
            self.content["rows"] = [row for row in earlier["rows"] if not row["problem"]]

    def has(self, row: Row) -> bool:
        """Tell whether a row is measured."""
        return any((result["id"], result["size"]) == (row.id, row.size) for result in self.content["rows"])

    def add(self, result: dict[str, Any]) -> None:
        """Take a row in, and write the file."""
        self.content["rows"].append(result)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            part = self.out.with_name(f"{self.out.name}.part")
            part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
            part.replace(self.out)

    def failed(self, rows: list[Row], check: bool) -> bool:
        """Tell whether a row has no numbers, or with `check` a ratio is more than 15 % below its target."""
        of = {(row.id, row.size): row.targets(self.content["settings"]["device"]) for row in rows}
        judged = (
            not holds(one["name"], one["value"], of[result["id"], result["size"]][one["name"]], 0.15)
            for result in self.content["rows"]
            for one in result["measures"]
            if one["target"] and one["unit"] not in ABSOLUTE and (result["id"], result["size"]) in of
        )
        return any(result["problem"] for result in self.content["rows"]) or (check and any(judged))


def _listed(row: Row) -> str:
    targets = [f"{name} {bound:g}" + f" ({kind})" * (kind == "cuda") for kind in ("cpu", "cuda")
               for name, bound in row.targets(kind).items()]  # fmt: skip
    return f"{row.id:<16}{row.size}\n{'':<16}{row.title}" + f"\n{'':<16}targets: {', '.join(targets)}" * bool(targets)


def _line(result: dict[str, Any]) -> str:
    measures = [
        f"{one['name']} {one['value']:.3g} {one['unit']}".rstrip()
        + (f" ({one['target']}{'' if one['reached'] else ' MISSED'})" if one["target"] else "")
        for one in result["measures"]
    ]
    return f"{result['id']}, {result['size']}: " + "; ".join(
        filter(None, [*measures, result["agreement"], result["problem"]])
    )


if __name__ == "__main__":
    main()
