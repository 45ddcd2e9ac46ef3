"""Run the demonstration: render, train twice with the same budget, score both on scenes neither has seen."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfmask.atomic import require_writable
from halfmask.demo.dataset import Size, write_dataset
from halfmask.errors import DataError

if TYPE_CHECKING:
    from halfmask.infer.metrics import Scores

# Folders of the two runs: one method, without and with the loss of the unlabeled images.
RUNS = ("control", "fixmatch")
STEPS = 400


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured."""

    out: Path  # its folder
    steps: int  # of each run
    seed: int  # of scenes and training
    size: Size  # of the dataset
    scores: "dict[str, Scores]"  # per run, on the test scenes
    seconds: dict[str, float]  # per phase
    pretrained: bool = True  # whether both began from ImageNet weights

    @property
    def page(self) -> Path:
        """Path of the HTML page."""
        return self.out / "report.html"

    @property
    def gain(self) -> float:
        """Difference in mean IoU that the loss of the unlabeled images brought, as a fraction."""
        return self.scores[RUNS[1]].miou - self.scores[RUNS[0]].miou

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {
            "page": str(self.page),
            "figure": str(self.out / "predictions.png"),
            "steps": self.steps,
            "seed": self.seed,
            "pretrained": self.pretrained,
            "labeled": self.size.labeled,
            "unlabeled": self.size.unlabeled,
            "scores": {name: scores.to_dict("test") for name, scores in self.scores.items()},
            "gain": self.gain,
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """Write both runs side by side, in percent."""
        first, second = (self.scores[name] for name in RUNS)
        lines = [f"{'IoU on test scenes, %':<22}{'masks alone':>12}{'+ unlabeled':>13}{'difference':>12}"]
        lines += [
            f"{name:<22}{100 * a:>12.1f}{100 * b:>13.1f}{100 * (b - a):>+12.1f}"
            for name, a, b in zip(first.classes, first.iou, second.iou, strict=True)
        ]
        lines.append(f"{'mean':<22}{100 * first.miou:>12.1f}{100 * second.miou:>13.1f}{100 * self.gain:>+12.1f}")
        total = sum(self.seconds.values())
        return "\n".join(
            [
                *lines,
                "",
                f"{self.size.labeled} images with masks; {self.size.unlabeled} without, which taught the right run "
                f"only; {self.steps} steps each, seed {self.seed}, {total:.0f} s in all",
                f"page   {self.page}",
            ]
        )


def run_demo(
    out: Path, *, steps: int | None = None, seed: int = 0, pretrained: bool = True, overwrite: bool = False,
    quiet: bool = False, size: Size | None = None,
) -> DemoResult:  # fmt: skip
    """Render a dataset, train with and without the loss of its unlabeled images, and write the comparison.

    Args:
        out: folder for `data/`, `control/`, `fixmatch/`, `predictions.png`, `report.html`.
        steps: optimizer steps of each run.
        seed: of the scenes and of both runs.
        pretrained: begin from the ImageNet weights that are installed with halfmask; `False`: a small network from
            random weights.
        overwrite: replace an earlier demonstration in `out`.
        quiet: no progress.
        size: of the dataset.

    Raises:
        DataError: `out` holds something else, or cannot be written.
        CheckpointError: the weights are not on this machine, and cannot be fetched.
    """
    size, steps = size or Size(), steps or STEPS
    require_writable(out)
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise DataError(
            f"{out} is not empty. Run it anew with --overwrite, or choose another folder with --out.", "H408"
        )
    seconds: dict[str, float] = {}
    clock = time.monotonic()
    _say(quiet, f"1/4  rendering {size.total} scenes of {size.side} x {size.side} pixels")
    write_dataset(out / "data", size, seed, overwrite=overwrite)
    seconds["render"] = time.monotonic() - clock

    # Imported here, so that the first sign of life does not wait for torch.
    from halfmask.demo.figure import write_figure
    from halfmask.demo.page import write_page
    from halfmask.infer.evaluate import evaluate
    from halfmask.recipe.read import load
    from halfmask.run.fit import fit

    scores = {}
    for number, name in enumerate(RUNS, start=2):
        clock = time.monotonic()
        about = "masks alone" if name == "control" else f"masks and {size.unlabeled} images without one"
        _say(quiet, f"{number}/4  training on {about}: {steps} steps")
        recipe = load(recipe_of(name, out / "data", steps, seed, pretrained=pretrained))
        fit(recipe, out / name, overwrite=overwrite, quiet=quiet)
        scores[name] = evaluate(out / name, part="test", quiet=True)
        seconds[name] = time.monotonic() - clock
        _say(quiet, f"     test mIoU {scores[name].miou:.1%}")
    clock = time.monotonic()
    _say(quiet, "4/4  writing the page")
    result = DemoResult(out, steps, seed, size, scores, seconds, pretrained)
    write_figure(out, RUNS)
    seconds["page"] = time.monotonic() - clock
    write_page(result, RUNS)
    (out / "result.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def recipe_of(run: str, data: Path, steps: int, seed: int, *, pretrained: bool = True) -> dict[str, Any]:
    """Return the recipe of one run; all but the weight of the unlabeled images' loss is the same.

    The control has the averaged weights, the batches and the passes of FixMatch too, so that a difference is due to
    what the unlabeled images teach. Either EfficientNet-Lite0 from the weights that are installed with halfmask, or a
    ResNet-18 at a quarter of its width from random weights, at nearly the same cost.
    """
    small = {
        "encoder": {"name": "resnet", "depth": 18, "width": 16, "stem": "plain", "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "rates": [2, 4, 6], "aspp": 48, "low": 16, "embedding": 48},
    }
    large = {
        "encoder": {"name": "efficientnet_lite", "size": "lite0", "weights": "imagenet"},
        "decoder": {"name": "segformer", "embedding": 256},
    }
    # Few steps from random weights: CutMix and a warm-up would cost accuracy (docs/results.md).
    # Hard labels forgot a class: 36 points of the donut on the scenes of seed 1. Soft targets cost it 6 there.
    tuned = {"targets": "soft", "warmup": 0.5, "cutmix": 1.0} if pretrained else {"cutmix": 0.0}
    return {
        "method": {"name": "fixmatch", "ema_decay": 0.99, "unlabeled_weight": float(run == RUNS[1]), **tuned},
        "model": large if pretrained else small,
        "data": {
            "root": str(data),
            "crop": 96,
            "batch": {"labeled": 6, "unlabeled": 6},
            "scale": [0.7, 1.4],
            "workers": 0,
            "cache": "memmap",
        },
        "optim": {"name": "adamw", "lr": 1e-3 if pretrained else 2e-3, "warmup_steps": min(20, steps // 10)},
        "eval": {"ship": "best"},
        "run": {
            "steps": steps,
            "seed": seed,
            "eval_every": max(steps // 5, 1),
            "log_every": max(steps // 40, 1),
            "passes": "separate" if pretrained else "published",
            "channels_last": True,  # pooling and small convolutions are a fifth faster on a CPU, too
            "logger": "none",
        },
    }


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
