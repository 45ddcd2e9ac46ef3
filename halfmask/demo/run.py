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

METHODS = ("supervised", "fixmatch")
STEPS = 800


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured.

    Args:
        out: its folder.
        steps: of each run.
        seed: of scenes and training.
        size: of the dataset.
        scores: per method, on the test scenes.
        seconds: per phase.
        pretrained: whether both began from ImageNet weights.
    """

    out: Path
    steps: int
    seed: int
    size: Size
    scores: "dict[str, Scores]"
    seconds: dict[str, float]
    pretrained: bool = False

    @property
    def page(self) -> Path:
        """Path of the HTML page."""
        return self.out / "report.html"

    @property
    def gain(self) -> float:
        """Difference in mean IoU, as a fraction."""
        return self.scores[METHODS[1]].miou - self.scores[METHODS[0]].miou

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
        first, second = (self.scores[name] for name in METHODS)
        lines = [f"{'IoU on test scenes, %':<22}{'supervised':>12}{'+ unlabeled':>13}{'difference':>12}"]
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
                f"{self.size.labeled} images with masks; {self.size.unlabeled} without, which only the right run saw; "
                f"{self.steps} steps each, seed {self.seed}, {total:.0f} s in all",
                f"page   {self.page}",
            ]
        )


def run_demo(
    out: Path, *, steps: int | None = None, seed: int = 0, pretrained: bool = False, overwrite: bool = False,
    quiet: bool = False, size: Size | None = None,
) -> DemoResult:  # fmt: skip
    """Render a dataset, train with and without its unlabeled images, and write the comparison.

    Args:
        out: folder for `data/`, `supervised/`, `fixmatch/`, `predictions.png`, `report.html`.
        steps: optimizer steps of each run.
        seed: of the scenes and of both runs.
        pretrained: begin from ImageNet weights, in a larger network.
        overwrite: replace an earlier demonstration in `out`.
        quiet: no progress.
        size: of the dataset.

    Raises:
        DataError: `out` holds something else, or cannot be written.
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
    for number, method in enumerate(METHODS, start=2):
        clock = time.monotonic()
        about = f"with the {size.unlabeled} unlabeled images" if method != "supervised" else "on labeled images only"
        _say(quiet, f"{number}/4  training {about}: {method}, {steps} steps")
        recipe = load(recipe_of(method, out / "data", steps, seed, pretrained=pretrained))
        fit(recipe, out / method, overwrite=overwrite, quiet=quiet)
        scores[method] = evaluate(out / method, part="test", quiet=True)
        seconds[method] = time.monotonic() - clock
        _say(quiet, f"     test mIoU {scores[method].miou:.1%}")
    clock = time.monotonic()
    _say(quiet, "4/4  writing the page")
    result = DemoResult(out, steps, seed, size, scores, seconds, pretrained)
    write_figure(out, METHODS)
    seconds["page"] = time.monotonic() - clock
    write_page(result, METHODS)
    (out / "result.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def recipe_of(method: str, data: Path, steps: int, seed: int, *, pretrained: bool = False) -> dict[str, Any]:
    """Return the recipe of one run; all but the method is the same.

    A ResNet-18 at a quarter of its width, from random weights: a CPU trains it in a minute or two, and nothing is
    downloaded. Or EfficientNet-Lite0 from the weights that are installed with halfmask, at nearly the same cost.
    """
    small = {
        "encoder": {"name": "resnet", "depth": 18, "width": 16, "stem": "plain", "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "rates": [2, 4, 6], "aspp": 48, "low": 16, "embedding": 48},
    }
    large = {
        "encoder": {"name": "efficientnet_lite", "size": "lite0", "frozen_stages": 3, "weights": "imagenet"},
        "decoder": {"name": "segformer", "embedding": 256},
    }
    methods: dict[str, dict[str, Any]] = {
        "supervised": {"name": "supervised"},
        # Few steps from random weights: CutMix would cost accuracy (docs/results.md). A falling rate does not, in twice
        # the steps of those tables: it takes out the noise of the last ones.
        "fixmatch": {"name": "fixmatch", "ema_decay": 0.99, "cutmix": 0.0},
    }
    return {
        "method": methods[method],
        "model": large if pretrained else small,
        "data": {
            "root": str(data),
            "crop": 96,
            "batch": {"labeled": 6, "unlabeled": 6},
            "scale": [0.7, 1.4],
            "workers": 0,
            "cache": "memmap",
        },
        "optim": {"name": "adamw", "lr": 1e-3 if pretrained else 2e-3, "warmup_steps": min(40, steps // 10)},
        "run": {
            "steps": steps,
            "seed": seed,
            "eval_every": max(steps // 8, 1),
            "log_every": max(steps // 40, 1),
            "channels_last": True,  # pooling and small convolutions are a fifth faster on a CPU, too
            "logger": "none",
        },
    }


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
