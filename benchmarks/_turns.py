"""Whole jobs of the library and of a published script in one process, block of steps by block of steps.

Both train on the same folder, from the same recipe. The real trainer runs; after each block of its steps the published
script makes as many. CPU seconds are the process's own, so that neither other processes nor waiting count. Imports,
checks, and the first steps of both drop out.
"""

import copy
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import published
import torch
import torch.nn.functional as F
from _oracles import plain_forms
from _pairs import Setting, copy_rate, seconds
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halfmask.batch import Batch, Progress
from halfmask.bench.speed import flop_counter
from halfmask.data.splits.split import open_dataset
from halfmask.infer.evaluate import DatasetItems, count
from halfmask.models.model import Model
from halfmask.recipe.read import Recipe
from halfmask.recipe.read import load as load_recipe
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.optim import base_rate
from halfmask.run.loop.trainer import make_trainer, prepare_networks
from halfmask.run.own_loop import build_method, loaders
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker

CLASSES, WIDTH, HEIGHT = 21, 500, 375  # as in Pascal VOC
_WARM_UP = 2


class Job(NamedTuple):
    """One row.

    Args:
        method: of the published script, or `evaluate`.
        keys: of the recipe METHOD/pascal.
        target: ratio to reach, in float32 and as shipped.
        block: steps per turn.
        window: side of sliding windows.
    """

    method: str
    keys: tuple[str, ...]
    target: tuple[float, float]
    block: int = 1
    window: int | None = None


_BATCH = ("data.batch={labeled: 2, unlabeled: 2}", "data.workers=0", "model.encoder.weights=null")
_CCT = (*_BATCH, "data.resample=bilinear", f"data.dataset.foreground={list(range(1, CLASSES))}", "data.crop=160")
_ALLSPARK = (*_BATCH, "model.encoder.size=b2", "data.crop=257", "method.warmup_epochs=0")

JOBS = {
    "unimatch_v2-126": Job("unimatch_v2", (*_BATCH, "data.crop=126"), (1.3, 2.5), block=2),
    "unimatch_v2-252": Job("unimatch_v2", (*_BATCH, "data.crop=252"), (1.3, 2.5)),
    "allspark-257": Job("allspark", _ALLSPARK, (2.2, 3.2)),
    "cct-160": Job("cct", _CCT, (1.4, 2.2)),
    "evaluate-whole": Job("evaluate", (*_BATCH, "data.crop=252", "eval.fit=resize"), (1.8, 1.8), block=2),
    "evaluate-windows": Job("evaluate", (*_BATCH, "data.crop=252", "eval.mode=slide"), (1.8, 1.8), window=252),
}


def make_folder(folder: Path, labeled: int = 12, unlabeled: int = 12) -> Path:
    """Write JPEG images and PNG masks with about the bytes of photographs: smooth structures and some noise."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "unlabeled"):
        (folder / name).mkdir(parents=True)
    for number in range(labeled + unlabeled):
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        smooth = np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT))).astype(np.int16)
        noisy = (smooth + rng.integers(-3, 4, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
        part = "images" if number < labeled else "unlabeled"
        Image.fromarray(noisy).save(folder / part / f"{number:03}.jpg", quality=92)
        if number < labeled:
            cells = rng.integers(0, CLASSES, (HEIGHT // 24 + 1, WIDTH // 24 + 1), np.uint8)
            mask = np.kron(cells, np.ones((24, 24), np.uint8))[:HEIGHT, :WIDTH]
            Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
    (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)), encoding="utf-8")
    return folder


def recipe_of(job: Job, folder: Path, precision: str) -> Recipe:
    """Return the recipe of both sides."""
    method = "unimatch_v2" if job.method == "evaluate" else job.method
    fixed = [f"data.root={folder}", f"run.precision={precision}", f"eval.precision={precision}"]
    return load_recipe(f"{method}/pascal", [*published.FOLDER, "run.logger=none", *fixed, *job.keys])


def measure(job: Job, folder: Path, precision: str, rounds: int) -> dict[str, Any]:
    """Time both forms in turns.

    Returns:
        CPU and wall seconds per step (or image) of both; the ratio of CPU seconds, round by round; shares of what the
        device can do.
    """
    recipe = recipe_of(job, folder, precision)
    turns = _evaluations(job, recipe, rounds) if job.method == "evaluate" else _trainings(job, recipe, rounds)
    ratios = [theirs[0] / own[0] for own, theirs in zip(turns.own, turns.theirs, strict=True)]
    result: dict[str, Any] = {
        "rounds": rounds,
        "block": job.block,
        "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
        "halfmask": _seconds(turns.own),
        "published": _seconds(turns.theirs),
    }
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    cpu = torch.device("cpu")
    for name, kind in (("halfmask", dtype), ("published", torch.float32)):
        taken = result[name]["cpu_seconds"]
        flops, traffic = turns.work[name]
        result[name] |= {"flops": flops, "matmul_share": flops / _matmul_rate(kind) / taken}
        result[name] |= {"bytes": traffic, "copy_share": traffic / copy_rate(cpu) / taken}
    return result


@functools.cache
def _matmul_rate(dtype: torch.dtype) -> float:
    """Return operations per CPU second of a large product: `matmul_rate` goes by the clock, which others slow down."""
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    return 2 * 1024**3 / seconds(lambda: a @ b, Setting(torch.device("cpu")))


class _Turns:
    """What was measured: (CPU, wall) seconds of a step for each block of both forms; operations and bytes of a step."""

    def __init__(self) -> None:
        self.own: list[tuple[float, float]] = []
        self.theirs: list[tuple[float, float]] = []
        self.work: dict[str, tuple[int, int]] = {}


def _seconds(turns: list[tuple[float, float]]) -> dict[str, Any]:
    cpu, wall = zip(*turns, strict=True)
    return {"cpu_seconds": statistics.median(cpu), "cpu_range": [min(cpu), max(cpu)], "wall_seconds": min(wall)}


def _timed(work: Callable[[], Any], steps: int) -> tuple[float, float]:
    began = time.process_time(), time.monotonic()
    work()
    return (time.process_time() - began[0]) / steps, (time.monotonic() - began[1]) / steps


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations other than products read and write; views cost nothing."""

    _PRODUCTS = ("mm", "conv", "attention", "linear")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not any(word in func.name() for word in self._PRODUCTS):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum({x.data_ptr(): x.nbytes for x in tensors}.values())
        return result


def _work(step: Callable[[], Any]) -> tuple[int, int]:
    """Return operations of the products, and bytes of everything else, of one step."""
    with flop_counter() as flops, _Traffic() as traffic:
        step()
    return int(flops.get_total_flops()), traffic.bytes


# --- training ----------------------------------------------------------------------------------------------------


def _trainings(job: Job, recipe: Recipe, rounds: int) -> _Turns:
    total = _WARM_UP + rounds * job.block + 2
    run = recipe.run.model_copy(update={"steps": total, "epochs": None, "log_every": total + 1})
    with tempfile.TemporaryDirectory(prefix="halfmask-whole-job-") as out:
        prepared = prepare(recipe.model_copy(update={"run": run}))
        made = prepared.recipe
        module = LitMethod(
            prepared.method,
            made.optim,
            lr=base_rate(made.optim, made.data.batch.labeled),
            total_steps=total,
            steps_per_epoch=prepared.steps_per_epoch,
            seed=made.run.seed,
            make_loader=loader_maker(prepared, Path(out)),
            meta={},
        )
        prepare_networks(prepared.method, made.run)
        turns = _TakeTurns(published.STEPS[job.method](recipe), job.block, rounds)
        make_trainer(made.run, Path(out), prepared.method, [turns]).fit(module)
    return turns.turns


class _TakeTurns(L.Callback):
    """After each block of the trainer's steps, lets the published script make as many."""

    def __init__(self, other: Iterator[float], block: int, rounds: int) -> None:
        self.other, self.block, self.rounds = other, block, rounds
        self.turns = _Turns()
        self._counter = self._traffic = None

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: L.Trainer, module: LitMethod, batch: Batch, batch_idx: int
    ) -> None:
        """Count the work of the last step, which is not timed."""
        if batch_idx == module.total_steps - 1:
            self._counter, self._traffic = flop_counter(), _Traffic()
            self._counter.__enter__(), self._traffic.__enter__()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End a block, and begin the next."""
        done = batch_idx + 1 - _WARM_UP
        if self._counter is not None:
            self._traffic.__exit__(None, None, None), self._counter.__exit__(None, None, None)
            self.turns.work["halfmask"] = int(self._counter.get_total_flops()), self._traffic.bytes
            with plain_forms():
                self.turns.work["published"] = _work(lambda: next(self.other))
        elif done == 0:
            with plain_forms():
                [next(self.other) for _ in range(_WARM_UP)]
        elif done > 0 and done % self.block == 0 and len(self.turns.own) < self.rounds:
            cpu, wall = time.process_time() - self._began[0], time.monotonic() - self._began[1]
            self.turns.own.append((cpu / self.block, wall / self.block))
            with plain_forms():
                work = _timed(lambda: [next(self.other) for _ in range(self.block)], self.block)
            self.turns.theirs.append(work)
        elif done % self.block:
            return
        self._began = time.process_time(), time.monotonic()


# --- evaluation --------------------------------------------------------------------------------------------------


class _Forms(NamedTuple):
    """Both evaluations of `job.block` images from the image number given on, and how many first images there are."""

    own: Callable[[int], Any]
    theirs: Callable[[int], Any]
    firsts: int


def _forms(job: Job, recipe: Recipe) -> _Forms:
    torch.manual_seed(0)
    model: Model = build_method(recipe).predictors()["student"].eval()
    dataset = open_dataset(recipe.data)
    root = Path(str(recipe.data.root))
    ids = [id for id in dataset.ids("train") if (root / "masks" / f"{Path(id).stem}.png").is_file()]
    items, files = DatasetItems(dataset, ids), [(root / id, root / "masks" / f"{Path(id).stem}.png") for id in ids]
    crop = recipe.data.crop

    def own(first: int) -> Tensor:
        part = DatasetItems(dataset, items.ids[first : first + job.block])
        return count(model, part, dataset.task, recipe.eval, "cpu", crop=crop, workers=0).counts

    def theirs(first: int) -> np.ndarray:
        with plain_forms():
            return published.evaluate(model, files[first : first + job.block], CLASSES, job.window)

    return _Forms(own, theirs, len(ids) - job.block + 1)


def evaluate_once(job: Job, folder: Path, precision: str, form: str) -> None:
    """Evaluate one block of images by one form, `own` or `theirs`: for the memory of its process."""
    getattr(_forms(job, recipe_of(job, folder, precision)), form)(0)


def _evaluations(job: Job, recipe: Recipe, rounds: int) -> _Turns:
    (own, theirs, firsts), turns = _forms(job, recipe), _Turns()
    for turn in range(rounds + 1):
        first = turn * job.block % firsts
        both = _timed(partial(own, first), job.block), _timed(partial(theirs, first), job.block)
        if turn:  # the first sets up libraries
            turns.own.append(both[0]), turns.theirs.append(both[1])
    turns.work = {"halfmask": _work(lambda: own(0)), "published": _work(lambda: theirs(0))}
    turns.work = {name: (flops // job.block, size // job.block) for name, (flops, size) in turns.work.items()}
    return turns


# --- agreement ---------------------------------------------------------------------------------------------------


def agreement(job: Job, folder: Path) -> str:
    """Compare losses and gradients of both forms on the same batch with the same draws, in float32.

    What draws inside is set aside: dropout and drop path are 0, CCT keeps the two perturbations without draws, AllSpark
    does not change colors.

    Raises:
        ValueError: they differ.
    """
    if job.method == "evaluate":
        return _same_counts(job, folder)
    still = {
        "unimatch_v2": (),
        "allspark": ("model.encoder.drop_path=0", "model.decoder.dropout=0", "model.bottleneck.dropout=0"),
        "cct": ("method.heads={con_msk: 2, obj_msk: 2}", "method.ramp_up=0"),
    }[job.method]
    still += ("method.labeled_color=false",) if job.method == "allspark" else ()
    small = ("data.crop=70",) if job.method == "unimatch_v2" else ("data.crop=64",)
    recipe = recipe_of(job._replace(keys=(*job.keys, *still, *small)), folder, "32-true")
    torch.manual_seed(0)
    method = build_method(recipe).train()
    batch = next(iter(loaders(recipe, 4, method)))
    student, progress = copy.deepcopy(method.student), Progress(3, 4, 4)
    with plain_forms():
        theirs = _theirs(job.method, method, student, batch)
    names = [name for name, weight in student.named_parameters() if weight.requires_grad]
    found = dict(zip(names, torch.autograd.grad(theirs, [student.get_parameter(name) for name in names]), strict=True))
    loss = method.step(batch, progress).loss
    own = torch.autograd.grad(loss, [method.student.get_parameter(name) for name in names])
    apart = abs(loss.item() / theirs.item() - 1)
    cosine = F.cosine_similarity(_joined(own), _joined([found[name] for name in names]), dim=0).item()
    if apart > 1e-4 or cosine < 0.999:
        raise ValueError(f"{job.method}: losses differ by {apart:.1e}, cosine of the gradients {cosine:.5f}")
    return f"losses differ by {apart:.0e}, cosine of the gradients {cosine:.6f}"


def _joined(tensors: Any) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _theirs(name: str, method: Any, student: Model, batch: Batch) -> Tensor:
    """Return the published loss; the method is made to draw the same."""
    normal = [(x - student.mean) / student.std for x in (batch.labeled.image, batch.draw(0).image)]
    labeled, weak = (normal[0], batch.labeled.labels), batch.draw(0)
    if name == "allspark":
        return published.allspark_loss(
            student, method.memory.slots.clone(), method.memory.pointer.clone(), labeled, normal[1]
        )
    if name == "cct":
        heads = [list(method.heads.head_state(number).values()) for number in range(method.heads.count)]
        return published.cct_loss(student, heads, method.counts, labeled, normal[1], method.unlabeled_weight)
    method.threshold = 0.0
    views, boxes = [weak.image * 0.7, weak.image.flip(-1)], [torch.zeros_like(weak.valid) for _ in range(2)]
    for number, box in enumerate(boxes):
        box[:, 8 : 30 + 8 * number, 8:40] = True
    mask = (torch.arange(student.encoder.channels[0]) % 2 * 2.0).expand(len(weak.image), -1)
    mask = torch.cat((mask, 2 - mask))
    waiting, drawn = iter(views), iter(boxes)
    del method.strong
    method.strong = lambda image: next(waiting)
    method.boxes = lambda *_, **__: next(drawn)
    method.dropout = lambda _, widths, **__: [mask for _ in widths]
    strong = [(x - student.mean) / student.std for x in views]
    teacher = copy.deepcopy(method.teacher.model).eval()
    return published.unimatch_v2_loss(student, teacher, labeled, (normal[1], weak.valid), strong, boxes, mask, 0.0)


def _same_counts(job: Job, folder: Path) -> str:
    recipe = recipe_of(job, folder, "32-true")
    torch.manual_seed(0)
    model: nn.Module = build_method(recipe).predictors()["student"].eval()
    dataset = open_dataset(recipe.data)
    id = next(id for id in dataset.ids("train") if (folder / "masks" / f"{Path(id).stem}.png").is_file())
    own = count(model, DatasetItems(dataset, [id]), dataset.task, recipe.eval, "cpu", crop=recipe.data.crop).counts
    with plain_forms():
        files = [(folder / id, folder / "masks" / f"{Path(id).stem}.png")]
        theirs = published.evaluate(model, files, CLASSES, job.window)
    matrix = own[:CLASSES].double()  # rows: target
    hits = matrix.diag()
    both = torch.stack((hits, matrix.sum(0) + matrix.sum(1) - hits))
    other = (both - torch.from_numpy(theirs)).abs().sum() / both[1].sum()
    if other > 1e-3:
        raise ValueError(f"{job.method}: areas differ by {other:.2%}")
    return f"areas differ by {other:.0e}"
