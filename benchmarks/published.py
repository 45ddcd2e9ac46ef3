"""Train and evaluate as published scripts do: the baseline of whole_job.py, written from the papers.

python benchmarks/published.py unimatch_v2 field data.crop=126 --steps 8

Every view is made in the dataset by Pillow, from the whole resized image, and leaves it normalized; labeled, weak and
strong images pass the network separately; layers are in their textbook form (whole attention maps, 1x1 convolutions
after the upsampling); logits are upsampled, then given to `F.cross_entropy`; optimizers are torch's defaults, averages
go tensor by tensor; all in float32. Networks and settings are those of the recipe `METHOD/pascal`, so that both sides
train the same thing: Yang et al., UniMatch V2 (TPAMI 2025, arXiv:2410.10777), Wang et al., AllSpark (CVPR 2024,
arXiv:2403.01818), Ouali et al., CCT (CVPR 2020, arXiv:2003.09005).

Left out because it only costs: AllSpark's scripts double the batch of the pseudo-label pass.
"""

import argparse
import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _oracles import allspark as plain_allspark
from _oracles import cct as plain_cct
from _oracles import cut_whole, draw_box, loading, paste_by_index, plain_forms
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from halfmask.models.model import Model
from halfmask.recipe.read import Recipe
from halfmask.recipe.read import load as load_recipe
from halfmask.run.own_loop import build_method
from halfmask.views.components import object_boxes

# Published settings, on a folder of one's own.
FOLDER = ("data.dataset=folder", "data.split=null", "data.val=none", "optim.reference_batch=null")


class Crops(Dataset[tuple[Any, ...]]):
    """Random crops of the images of a folder.

    Args:
        recipe: crop and scale.
        labeled: images with masks, else those without.
        strong: number of strong views; of labeled images one in place of the crop.
    """

    def __init__(self, recipe: Recipe, labeled: bool, strong: int) -> None:
        root, self.masks = Path(str(recipe.data.root)), Path(str(recipe.data.root)) / "masks"
        self.files = sorted((root / ("images" if labeled else "unlabeled")).iterdir())
        self.crop, self.scale, self.labeled, self.strong = recipe.data.crop, recipe.data.scale, labeled, strong
        self.rng = random.Random(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        """Read, scale, crop and flip one image; labeled: with its target; else views, validity and boxes."""
        path, rng, crop = self.files[number], self.rng, self.crop
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
        height, width = pixels.shape[:2]
        share = rng.uniform(*self.scale)
        size = int(width * share + 0.5), int(height * share + 0.5)
        corner = tuple(rng.randint(0, max(side - crop, 0)) for side in size)
        place: dict[str, Any] = {"size": size, "corner": corner, "crop": crop, "flip": rng.random() < 0.5}
        black, nearest = (0, 0, 0), Image.Resampling.NEAREST
        cut = Image.fromarray(cut_whole(pixels, **place, fill=black, resample=Image.Resampling.BILINEAR))
        if self.labeled:
            with Image.open(self.masks / f"{path.stem}.png") as opened:
                target = cut_whole(np.array(opened), **place, fill=255, resample=nearest)
            view = loading.strong_view(cut, rng) if self.strong else cut
            return loading.to_normalized(view), torch.from_numpy(target).long()
        valid = cut_whole(np.ones((height, width), np.uint8), **place, fill=0, resample=nearest)
        views = [loading.to_normalized(view) for view in (cut, *self._strong(cut))]
        return *views, torch.from_numpy(valid).bool(), *(self._box() for _ in range(self.strong))

    def _strong(self, cut: Image.Image) -> list[Image.Image]:
        return [loading.strong_view(cut, self.rng) for _ in range(self.strong)]

    def _box(self) -> Tensor:
        box = torch.zeros(self.crop, self.crop, dtype=torch.bool)
        if drawn := draw_box(self.crop, self.crop, self.rng):
            top, left, bottom, right = drawn
            box[top:bottom, left:right] = True
        return box


def batches(recipe: Recipe, strong: int = 0, labeled_strong: int = 0) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Return labeled and unlabeled batches for ever, loaded in this process."""
    sizes = recipe.data.batch.labeled, recipe.data.batch.unlabeled
    sets = Crops(recipe, True, labeled_strong), Crops(recipe, False, strong)
    loaders = [DataLoader(one, size, shuffle=True, drop_last=True) for one, size in zip(sets, sizes, strict=True)]
    yield from zip(*map(_for_ever, loaders), strict=True)


def _for_ever(loader: "DataLoader[tuple[Any, ...]]") -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def predict(model: Model, image: Tensor, change: Callable[[list[Tensor]], list[Tensor]] | None = None) -> Tensor:
    """Return logits of normalized images in their size; `change` is applied to the features."""
    features = model.encoder(image)
    embedding = model.embed(features if change is None else change(features))
    return upsampled(model, model.classifier(embedding), image)


def upsampled(model: Model, logits: Tensor, image: Tensor) -> Tensor:
    """Interpolate logits to the size of the image."""
    aligned = model.decoder.align_corners
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=aligned)


def optimizer_of(recipe: Recipe, student: Model, others: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make torch's optimizer with its defaults: one group for the encoder, one for all else."""
    optim, encoder = recipe.optim, list(student.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in student.parameters() if id(parameter) not in known] + others
    groups = [{"params": encoder}, {"params": rest, "lr": optim.lr * optim.decoder_lr_scale}]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def train(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Make one update."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# --- UniMatch V2 -------------------------------------------------------------------------------------------------


def unimatch_v2_loss(
    student: Model,
    teacher: Model,
    labeled: tuple[Tensor, Tensor],
    weak: tuple[Tensor, Tensor],
    strong: list[Tensor],
    boxes: list[Tensor],
    mask: Tensor,
    threshold: float,
) -> Tensor:
    """Return the loss of one batch; `mask` (2B, D) multiplies the channels of [view 1; view 2]."""
    with torch.no_grad():
        confidence, label = predict(teacher, weak[0]).softmax(1).max(1)
    mixed = [paste_by_index(box, view, view.flip(0)) for view, box in zip(strong, boxes, strict=True)]
    logits_l = predict(student, labeled[0])
    factor = mask[:, :, None, None]
    logits = predict(student, torch.cat(mixed), lambda maps: [x * factor for x in maps])
    loss_l = F.cross_entropy(logits_l, labeled[1], ignore_index=255)
    losses = []
    for logits_v, box in zip(logits.chunk(2), boxes, strict=True):
        y, sure, valid = (paste_by_index(box, x, x.flip(0)) for x in (label, confidence, weak[1]))
        loss = F.cross_entropy(logits_v, y, reduction="none") * ((sure >= threshold) & valid)
        losses.append(loss.sum() / valid.sum())
    return (loss_l + (losses[0] + losses[1]) / 2) / 2


def unimatch_v2(recipe: Recipe) -> Iterator[float]:
    """Train; each item is the loss of one step."""
    student = _method(recipe).student.train()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = optimizer_of(recipe, student, [])
    for step, ((x_l, y_l), (weak, one, two, valid, *boxes)) in enumerate(batches(recipe, strong=2)):
        mask = torch.bernoulli(torch.full((len(weak), student.encoder.channels[0]), 0.5)) * 2
        whole = torch.randperm(len(weak))[: len(weak) // 2]
        mask = torch.stack((mask, 2 - mask)).index_fill_(1, whole, 1.0).flatten(0, 1)
        loss = unimatch_v2_loss(student, teacher, (x_l, y_l), (weak, valid), [one, two], boxes, mask, 0.95)
        yield train(loss, optimizer)
        decay = min(1 - 1 / (step + 1), 0.996)
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
            own.copy_(own * decay + other.detach() * (1 - decay))


# --- AllSpark ----------------------------------------------------------------------------------------------------


def allspark_loss(
    student: Model, memory: Tensor, pointer: Tensor, labeled: tuple[Tensor, Tensor], image: Tensor
) -> Tensor:
    """Return the loss of one batch; the memory is written."""
    bottleneck: Any = student.bottleneck
    student.eval()
    with torch.no_grad():
        features = student.encoder(image)
        tokens, residual = bottleneck.embed(features[-1])
        last = bottleneck.attend(tokens, residual, tokens.transpose(1, 2), labeled=len(image))
        coarse = student.classifier(student.decode([*features[:-1], last]))
        logits_w = upsampled(student, coarse, image)
        label = logits_w.argmax(1)
    student.train()

    joined = torch.cat((labeled[0], image))
    features = student.encoder(joined)
    tokens, residual = bottleneck.embed(features[-1])
    unlabeled = tokens[len(image) :].detach()
    maps = F.interpolate(logits_w, features[-1].shape[-2:], mode="bilinear").flatten(2)
    similarity = F.normalize(maps, dim=2) @ F.normalize(unlabeled, dim=1)  # (B, K, C)
    plain_allspark.enqueue(memory, pointer, unlabeled.transpose(1, 2), similarity.argmax(1))
    last = bottleneck.attend(tokens, residual, memory, labeled=len(image))
    logits = upsampled(student, student.classifier(student.decode([*features[:-1], last])), joined)
    logits_l, logits_u = logits.chunk(2)
    return (F.cross_entropy(logits_l, labeled[1], ignore_index=255) + F.cross_entropy(logits_u, label)) / 2


def allspark(recipe: Recipe) -> Iterator[float]:
    """Train; each item is the loss of one step."""
    method = _method(recipe)
    student, memory = method.student.train(), torch.randn_like(method.memory.slots)
    pointer = torch.zeros(len(memory), dtype=torch.int64)
    optimizer = optimizer_of(recipe, student, [])
    for labeled, (image, _) in batches(recipe, labeled_strong=1):
        yield train(allspark_loss(student, memory, pointer, (labeled[0], labeled[1]), image), optimizer)


# --- CCT ---------------------------------------------------------------------------------------------------------


def cct_loss(
    student: Model,
    heads: list[list[Tensor]],
    kinds: dict[str, int],
    labeled: tuple[Tensor, Tensor],
    image: Tensor,
    weight: float,
) -> Tensor:
    """Return the loss of one batch; every decoder makes its own perturbation."""
    logits_l = upsampled(student, student.classifier(student.embed(student.encoder(labeled[0]))), labeled[0])
    loss_l = F.cross_entropy(logits_l, labeled[1], ignore_index=255)
    z = student.embed(student.encoder(image))
    prediction = student.classifier(z).detach()
    target, waiting, losses = prediction.softmax(1), iter(heads), []
    for kind, count in kinds.items():
        for own in [next(waiting) for _ in range(count)]:
            changed = _PERTURBATIONS[kind](z, prediction, own)
            losses.append(F.mse_loss(plain_cct.decode(own, changed).softmax(1), target))
    return loss_l + weight * torch.stack(losses).mean()


def _i_vat(z: Tensor, prediction: Tensor, own: list[Tensor]) -> Tensor:
    return plain_cct.adversarial(z, partial(plain_cct.decode, own), torch.rand_like(z), xi=1e-6, eps=2.0)


def _g_cutout(z: Tensor, prediction: Tensor, own: list[Tensor]) -> Tensor:
    size = prediction.shape[-2], prediction.shape[-1]
    found = object_boxes(prediction.argmax(1) > 0, "contours")
    boxes = [corners[there].tolist() for corners, there in zip(found.corners, found.used, strict=True)]
    offsets = [
        [(random.randint(0, int((x1 - x0) * 0.6)), random.randint(0, int((y1 - y0) * 0.6))) for x0, y0, x1, y1 in of]
        for of in boxes
    ]
    return plain_cct.cutout(z, size, boxes, 0.4, offsets)


_PERTURBATIONS: dict[str, Callable[[Tensor, Tensor, list[Tensor]], Tensor]] = {
    "i_vat": _i_vat,
    "dropout": lambda z, prediction, own: F.dropout2d(z, 0.5),
    "g_cutout": _g_cutout,
    "con_msk": lambda z, prediction, own: plain_cct.keep_objects(z, prediction),
    "obj_msk": lambda z, prediction, own: plain_cct.keep_context(z, prediction),
    "f_drop": lambda z, prediction, own: plain_cct.feature_drop(z, random.uniform(0.7, 0.9)),
    "f_noise": lambda z, prediction, own: plain_cct.feature_noise(z, torch.empty(z.shape[1:]).uniform_(-0.3, 0.3)),
}


def cct(recipe: Recipe) -> Iterator[float]:
    """Train; each item is the loss of one step."""
    method = _method(recipe)
    student, kinds = method.student.train(), method.counts
    heads = [
        [nn.Parameter(weight) for weight in method.heads.head_state(n).values()] for n in range(sum(kinds.values()))
    ]
    optimizer = optimizer_of(recipe, student, [weight for own in heads for weight in own])
    for labeled, (image, _) in batches(recipe):
        yield train(cct_loss(student, heads, kinds, (labeled[0], labeled[1]), image, 30.0), optimizer)


def _method(recipe: Recipe) -> Any:
    torch.manual_seed(0)
    return build_method(recipe)


STEPS: dict[str, Callable[[Recipe], Iterator[float]]] = {"unimatch_v2": unimatch_v2, "allspark": allspark, "cct": cct}


# --- evaluation --------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: Model, files: list[tuple[Path, Path]], classes: int, window: int | None) -> np.ndarray:
    """Return intersections and unions (2, K): whole images resized to what fits, or windows one after the other."""
    counts = np.zeros((2, classes))
    for path, mask in files:
        with Image.open(path) as opened:
            image = loading.to_normalized(opened.convert("RGB"))[None]
        with Image.open(mask) as opened:
            target = np.array(opened)
        prediction = (_whole(model, image) if window is None else _windows(model, image, classes, window))[0].numpy()
        known = target != 255
        hit = prediction[known & (prediction == target)]
        areas = [
            np.histogram(x, bins=classes, range=(0, classes - 1))[0] for x in (hit, prediction[known], target[known])
        ]
        counts += np.stack((areas[0], areas[1] + areas[2] - areas[0]))
    return counts


def _whole(model: Model, image: Tensor) -> Tensor:
    multiple = model.size_multiple
    size = [max(int(side / multiple + 0.5), 1) * multiple for side in image.shape[-2:]]
    fitted = F.interpolate(image, size, mode="bilinear", align_corners=True)
    logits = F.interpolate(predict(model, fitted), image.shape[-2:], mode="bilinear", align_corners=True)
    return logits.argmax(1)


def _windows(model: Model, image: Tensor, classes: int, side: int) -> Tensor:
    total = torch.zeros(1, classes, *image.shape[-2:])
    starts = [[*range(0, length - side, side * 2 // 3), length - side] for length in image.shape[-2:]]
    for top in starts[0]:
        for left in starts[1]:
            part = image[:, :, top : top + side, left : left + side]
            total[:, :, top : top + side, left : left + side] += predict(model, part).softmax(1)
    return total.argmax(1)


def main() -> None:
    """Train some steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=STEPS)
    parser.add_argument("data", help="folder with images/, masks/ (PNG) and unlabeled/")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="any key of the recipe METHOD/pascal")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_intermixed_args()
    recipe = load_recipe(f"{options.method}/pascal", [*FOLDER, f"data.root={options.data}", *options.keys])
    with plain_forms():
        losses = STEPS[options.method](recipe)
        for step in range(options.steps):
            print(f"step {step + 1}  loss {next(losses):.4f}", flush=True)


if __name__ == "__main__":
    main()
