"""Write docs/scaling.md: what 8 and 64 GPUs can give for each published recipe, computed, not measured.

python docs/scaling.py           rewrite the page
python docs/scaling.py --check   only say whether it is out of date; exit code 1 if it is

Networks are built on torch's meta device: shapes without memory. Their forward pass is counted by torch's FLOP counter.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from halfmask.models.build import Builder
from halfmask.recipe.read import Recipe, load
from halfmask.recipe.sections import Entry, ModelRecipe
from halfmask.recipe.shipped import recipe_names, recipes_folder
from halfmask.task import Task

PAGE = Path(__file__).parent / "scaling.md"
CLASSES = {"pascal": 21, "cityscapes": 19, "coco": 81, "ade20k": 150, "camvid": 11, "levir": 2, "whu": 2}

# Assumptions; change them and run the script again.
PEAK = 790e12  # bfloat16 operations per second of one GPU
SHARE = 0.40  # of it that well-tuned training reaches
INSIDE = 300e9  # bytes per second and GPU of a ring all-reduce inside a node of 8
BETWEEN = 40e9  # likewise between nodes: one 400 Gbit/s link per GPU at 80 %
DECODED = 125  # crops per second that one core decodes and cuts
NODE = 8

# Passes of an unlabeled image through a network: trained ones (forward and backward: 3 forwards), and others.
PASSES = {
    "supervised": (0, 0), "pseudo_label": (1, 1), "mean_teacher": (1, 1), "fixmatch": (1, 1), "allspark": (1, 1),
    "cct": (1, 0), "unimatch": (3, 1), "unimatch_v2": (2, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One training step of a recipe.

    Args:
        parameters: trained ones.
        flops: of all passes of a step.
        images: that the loader has to give.
        batch: labeled images.
    """

    parameters: int
    flops: float
    images: int
    batch: int

    def compute(self, gpus: int) -> float:
        """Seconds of arithmetic, the batch divided over the GPUs."""
        return self.flops / gpus / (SHARE * PEAK)

    def communication(self, gpus: int) -> float:
        """Seconds of a ring all-reduce of the float32 gradients, if nothing of it hides behind the backward pass."""
        if gpus == 1:
            return 0.0
        return 2 * (gpus - 1) / gpus * 4 * self.parameters / (INSIDE if gpus <= NODE else BETWEEN)

    def larger(self, factor: int) -> "Step":
        """The same with a larger batch."""
        return Step(self.parameters, self.flops * factor, self.images * factor, self.batch * factor)


@cache
def network(section: str, kind: str, classes: int, crop: int) -> tuple[int, int]:
    """Give trained parameters and floating-point operations of a forward pass of one image."""
    task = Task(kind, tuple(f"class {number}" for number in range(classes)))  # type: ignore[arg-type]
    with torch.device("meta"), torch.no_grad():
        model = Builder(ModelRecipe.model_validate_json(section), task, crop=crop, pretrained=False)().eval()
        dates = (2,) if kind == "change" else ()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *dates, 3, crop, crop))
    return sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops()


def step_of(recipe: Recipe) -> Step:
    """Count one step of a recipe."""
    dataset, data = recipe.data.dataset.name, recipe.data
    kind = "change" if dataset in ("levir", "whu") else "segmentation"
    section = recipe.model
    if recipe.method.name == "allspark":
        section = section.model_copy(update={"bottleneck": Entry(name="allspark")})
    parameters, flops = network(section.model_dump_json(), kind, CLASSES[dataset], data.crop)
    trained, others = PASSES[recipe.method.name]
    unlabeled = data.batch.unlabeled if trained else 0
    work = 3 * data.batch.labeled + (3 * trained + others) * unlabeled
    return Step(parameters, float(flops * work), data.batch.labeled + unlabeled, data.batch.labeled)


def rows() -> list[list[str]]:
    """One row per recipe of a published dataset."""
    found = []
    for name in recipe_names():
        recipe = load(recipes_folder() / f"{name}.yaml")
        if recipe.data.domains or recipe.data.dataset.name not in CLASSES or recipe.method.name not in PASSES:
            continue
        one = step_of(recipe)
        eight = one if one.batch % NODE == 0 else None
        many = one.larger(NODE) if eight else None
        found.append(
            [
                f"`{name}`",
                f"{one.parameters / 1e6:.1f}",
                f"{4 * one.parameters / 1e6:.0f}",
                f"{one.flops / 1e12:.1f}",
                f"{1e3 * one.compute(1):.0f}",
                *_scaled(eight, 8),
                *_scaled(many, 64),
            ]
        )
    return found


def _scaled(step: Step | None, gpus: int) -> list[str]:
    if step is None:
        return ["-"] * 3
    compute, communication = step.compute(gpus), step.communication(gpus)
    seconds = max(compute, communication)  # all of it hidden, at best
    images = step.images / seconds
    return [f"{1e3 * compute:.0f} + {1e3 * communication:.1f}", f"{images:.0f}", f"{images / DECODED / gpus:.1f}"]


def page() -> str:
    """Give the whole page."""
    head = ["recipe", "M parameters", "MB exchanged", "TFLOP", "1 GPU: ms"]
    for gpus in (8, 64):
        head += [f"{gpus} GPUs: ms", "images/s", "cores/GPU"]
    table = [head, ["---", *["---:"] * (len(head) - 1)], *rows()]
    body = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"""# What more GPUs can give

Computed by `python docs/scaling.py`, **not measured**: an upper bound to plan with. Assumed:

- arithmetic at {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s (bfloat16) per GPU;
- gradients in float32, exchanged once per step in a ring, at {INSIDE / 1e9:.0f} GB/s per GPU inside a node of {NODE},
  and at {BETWEEN / 1e9:.0f} GB/s between nodes; at best all of it is hidden behind the backward pass;
- {DECODED} crops per second from one loader core.

A step's FLOP are those of the network's passes (a backward pass counts twice a forward one) without losses, strong
views and CCT's auxiliary decoders, whose weights are not counted either; nor are the channels that AllSpark gathers.

*8 GPUs*: the recipe's batch divided by 8, so the same training. *64 GPUs*: eight times the batch, eight times fewer
steps for an epoch; that is another training, whose rate has to be found (`optim.reference_batch` scales it linearly).
`ms` is arithmetic + exchange. `images/s` is what the loaders have to give for that, `cores/GPU` what they need for
it: with fewer the GPUs wait, unless images are cached (`data.cache`). `-`: 8 does not divide the batch. With batch
normalization a GPU needs two labeled images, so that such recipes with 8 of them run on 4 GPUs at most.

{body}
"""


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text(encoding="utf-8") == text
        print("docs/scaling.md is up to date" if current else "docs/scaling.md is out of date: python docs/scaling.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
