"""What the benchmarks share: networks, options, runs that are done once, the table over seeds, the JSON file."""

import argparse
import itertools
import json
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from halfmask.data.splits.split import open_dataset
from halfmask.plugins import resolve
from halfmask.recipe.read import DataRecipe
from halfmask.run.folder import environment
from halfmask.run.train import train

MODELS: dict[str, dict[str, Any]] = {
    "linknet": {"name": "smp", "arch": "linknet", "encoder": {"name": "resnet18"}},
    # A ResNet-18 at a quarter of its width: four times faster on a CPU.
    "small": {
        "encoder": {"name": "resnet", "depth": 18, "width": 16, "stem": "plain", "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "rates": [2, 4, 6], "aspp": 48, "low": 16, "embedding": 48},
    },
    "mit": {"encoder": {"name": "mit", "size": "b0"}, "decoder": {"name": "segformer", "embedding": 128}},
}
# Options that say where things lie on this machine, and what a command line shows instead.
_PLACES = {"--data": "DIR/{name}", "--out": "runs/{script}", "--json": "benchmarks/results/{name}"}

CONTROL = "-control"  # ends the label of a method without the loss of the unlabeled images
Score = TypeVar("Score")


def parser_of(description: str, *, steps: int, model: str) -> argparse.ArgumentParser:
    """Begin a command line with the options that every benchmark has; `steps` and `model` are defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--model", choices=MODELS, default=model)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for every run")
    return parser


def add_views(parser: argparse.ArgumentParser, scale: Sequence[float]) -> None:
    """Add the options of what a network sees while it trains."""
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8, help="labeled images per step, and as many unlabeled ones")
    parser.add_argument("--scale", nargs=2, type=float, default=list(scale), help="of the long side, while training")


def views(options: argparse.Namespace) -> dict[str, Any]:
    """Give the keys of a recipe's data that `add_views` asks for."""
    return {
        "crop": options.crop,
        "batch": {"labeled": options.batch, "unlabeled": options.batch},
        "scale": list(options.scale),
        "workers": 0,
    }


def training(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Give the sections of a recipe that say how every run of a benchmark is trained."""
    return {
        "optim": {"name": "adamw", "lr": 1e-3},
        "run": {"steps": options.steps, "seed": seed, "accelerator": options.accelerator, "logger": "none"},
    }


def add_method_options(parser: argparse.ArgumentParser, default: Sequence[str] | None) -> None:
    """Add the options of which methods are compared, in which forms; `default` is of `--methods`."""
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=default,
        help="names, or LABEL=NAME for a second form of a method, whose --params then start with the label",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also run each method without the loss of the unlabeled images, all else equal: rows LABEL-control",
    )
    add_params(parser)


def add_params(parser: argparse.ArgumentParser) -> None:
    """Add the option that `overrides_of` reads."""
    parser.add_argument(
        "--params",
        nargs="*",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="of one method's runs (model.KEY: its network, data.KEY: its data)",
    )


def label_and_method(form: str) -> tuple[str, str]:
    """Take apart what `--methods` names.

    >>> label_and_method("cct"), label_and_method("lite=cct")
    (('cct', 'cct'), ('lite', 'cct'))
    """
    label, _, method = form.partition("=")
    return label, method or label


def forms_of(options: argparse.Namespace) -> list[str]:
    """Give the forms to run: with `--controls` each one that has a control is followed by it."""
    forms = []
    for form in options.methods:
        label, method = label_and_method(form)
        controlled = options.controls and resolve("methods", method).control_params() is not None
        forms += [form, f"{label}{CONTROL}={method}"] if controlled else [form]
    return forms


def params_of(options: argparse.Namespace, label: str) -> list[str]:
    """Give the KEY=VALUE that `--params LABEL.KEY=VALUE` names for the runs of one label."""
    return [item.partition(".")[2] for item in options.params if item.startswith(f"{label}.")]


def overrides_of(options: argparse.Namespace, label: str, method: str) -> list[str]:
    """Give the same as overrides of a recipe: keys are of the method, unless they begin with another section.

    A control has the params of its label, and then those that leave the loss of the unlabeled images out.
    """
    own = label.removesuffix(CONTROL)
    given = [p if p.startswith(("model.", "data.")) else f"method.{p}" for p in params_of(options, own)]
    left_out = resolve("methods", method).control_params() if own != label else None
    return given + [f"method.{key}={json.dumps(value)}" for key, value in (left_out or {}).items()]


def resized(source: Path, side: int, out: Path) -> Path:
    """Write a copy of a dataset with all images squeezed to `side` x `side` pixels (masks by nearest neighbor)."""
    target = out / f"{source.name}_{side}"
    if target.exists():
        return target
    dataset = open_dataset(DataRecipe(root=str(source)))
    part_folder = target.with_suffix(".part")
    for part in ("train", "val", "test"):
        for id in dataset.ids(part):
            pairs = (
                ("images", dataset.read_image(id), Image.Resampling.BILINEAR),
                ("masks", dataset.read_target(id), Image.Resampling.NEAREST),
            )
            for folder, pixels, filter in pairs:
                path = part_folder / folder / part / f"{Path(id).stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).resize((side, side), filter).save(path)
    shutil.copy(source / "classes.txt", part_folder / "classes.txt")
    part_folder.rename(target)
    return target


def run_once(out: Path, start: Callable[[], object], score: Callable[[float], Score]) -> Score:
    """Train a run, resume it, or skip it, and keep its score.

    Args:
        out: run folder; `score.json` in it says that the run is finished.
        start: begins a new run in `out`.
        score: gives, as JSON can hold it, what is known at the end; takes the minutes of training.
    """
    score_file = out / "score.json"
    if score_file.exists():
        return json.loads(score_file.read_text())  # type: ignore[no-any-return]
    began = time.monotonic()
    # Below the run folder, because the stages of a run have folders of their own.
    if (out / "recipe.yaml").exists() and any(out.rglob("last.ckpt")):
        train(None, out, resume=True, quiet=True)
    else:
        start()
    found = score((time.monotonic() - began) / 60)
    score_file.write_text(json.dumps(found))
    return found


def run_all(run: Callable[..., dict[str, Any]], *choices: Iterable[Any]) -> list[dict[str, Any]]:
    """Call `run` with every combination of choices, the last one changing fastest, and print each score."""
    scores = []
    for chosen in itertools.product(*choices):
        scores.append(run(*chosen))
        print(json.dumps(scores[-1]), flush=True)
    return scores


def grouped(scores: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Put scores together that agree in some entries, in order of first occurrence."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for score in scores:
        groups.setdefault(tuple(score[key] for key in keys), []).append(score)
    return groups


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Reduce the values of several seeds to mean and sample standard deviation."""
    return {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def table(scores: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Reduce the seeds of the runs that agree in `keys` to one row of test mIoU and minutes."""
    return [
        {
            **dict(zip(keys, named, strict=True)),
            **over_seeds([score["test_miou"] for score in group]),
            "minutes": statistics.mean(score["minutes"] for score in group),
        }
        for named, group in grouped(scores, *keys).items()
    ]


def percent(row: dict[str, Any]) -> str:
    """Print a row of `over_seeds`.

    >>> percent({"mean": 0.512, "sd": 0.008}), percent({"mean": 0.512, "sd": None})
    ('51.2% ± 0.8%', '51.2%')
    """
    return f"{row['mean']:.1%}" + ("" if row["sd"] is None else f" ± {row['sd']:.1%}")


def command_line(words: Sequence[str]) -> str:
    """Give the command that was typed, without this machine's folders.

    >>> command_line(["benchmarks/domains.py", "--data", "/a/camvid", "/b/facades", "--out=/c", "--seeds", "0"])
    'python benchmarks/domains.py --data DIR/camvid DIR/facades --out=runs/domains --seeds 0'
    """
    script = Path(words[0])
    option, shown = "", []
    for word in words[1:]:
        head, value = "", word
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            head = option + equals
        if value and option in _PLACES:
            value = _PLACES[option].format(name=Path(value).name, script=script.stem)
        shown.append(shlex.quote(head + value))
    return " ".join([f"python benchmarks/{script.name}", *shown])


def write_json(options: argparse.Namespace, data: object, rows: object, scores: list[dict[str, Any]]) -> None:
    """Write command, settings, environment, table and single runs to `--json`, if it is given.

    Args:
        options: of the command line.
        data: name of the data.
        rows: the table.
        scores: of all runs.
    """
    if options.json is None:
        return
    settings = {name: value for name, value in vars(options).items() if name not in {"out", "root", "roots", "json"}}
    state = environment()
    content = {
        "command": command_line(sys.argv),
        "settings": settings | {"data": data},
        "environment": {name: state[name] for name in ("python", "cpu_cores", "devices", "packages", "git")},
        "rows": rows,
        "runs": scores,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=2) + "\n")
