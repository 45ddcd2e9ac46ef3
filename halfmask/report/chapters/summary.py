"""The head of the page: did it help, how good is it, and what the number may be compared with."""

import math

from halfmask.infer.bootstrap import Interval
from halfmask.report.markup import between, chapter, duration, esc, note, percent, signed, table
from halfmask.report.material import Material
from halfmask.report.records import Run
from halfmask.task import METRIC_NAMES

_FEW = 20


def headline(found: Material) -> str:
    """Say the most important thing in one sentence."""
    metric = METRIC_NAMES[found.run.metric]
    if found.gain is not None and not found.supervised:
        return verdict(found.gain.main)[1]
    if found.scores is not None:
        return f"{metric} {percent(found.scores.main.value)} %"
    curve = found.run.curve(f"val/{found.run.metric}")
    if curve:
        return f"{metric} {percent(max(value for _, value in curve))} % at its best"
    return f"{found.run.steps} steps, no score yet"


def verdict(gain: Interval) -> tuple[str, str]:
    """Judge a difference by its interval: a word for styles, and a sentence."""
    if math.isnan(gain.low):
        return "open", "Whether the unlabeled images helped cannot be told from a single image"
    if gain.low > 0:
        return "good", "The unlabeled images helped"
    if gain.high < 0:
        return "bad", "The unlabeled images did harm"
    return "open", "The unlabeled images did not measurably help"


def summary(found: Material) -> str:
    """Return the key figures and the chapter `result`."""
    return _figures(found) + _result(found) + _twin(found)


def _figures(found: Material) -> str:
    run, metric = found.run, METRIC_NAMES[found.run.metric]
    cells = []
    if found.scores is not None and found.tally is not None:
        spread = between(found.scores.main)
        small = f"95 % interval {spread}" if spread else "no interval: one image"
        cells.append((metric, f"{percent(found.scores.main.value)} %", small))
    if found.gain is not None and not found.supervised:
        cells.append(
            (
                "gain by unlabeled images",
                signed(found.gain.main.value),
                f"95 % interval {between(found.gain.main, True)}",
            )
        )
    number = found.published
    if number is not None:
        cells.append(("published", f"{percent(number.value)} %", f"{number.metric}, {esc(number.source)}"))
    if run.seconds:
        cells.append(("trained in", duration(run.seconds), f"{run.steps:,} steps"))
    if run.count("labeled") is not None:
        cells.append(("images with masks", f"{run.count('labeled'):,}", f"{run.count('unlabeled'):,} without"))
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class=small>{small}</dd></div>" for name, value, small in cells
    )
    return f'<dl class="figures">{shown}</dl>' if cells else ""


def _result(found: Material) -> str:
    run = found.run
    parts = []
    if "model" in found.missing:
        parts.append(note(esc(found.missing["model"])))
    if "images" in found.missing:
        parts.append(note(esc(found.missing["images"])))
    rows = []
    for name in run.predictors:
        curve = run.curve(f"{name}/val/{run.metric}")
        if not curve:
            continue
        step, best = max(curve, key=lambda point: point[1])
        shipped = " <b>(shipped)</b>" if name == run.predictors[0] else ""
        rows.append((esc(name) + shipped, percent(best), f"{step:,}", percent(curve[-1][1]), f"{curve[-1][0]:,}"))
    if rows:
        head = ("network", "best, %", "at step", "last, %", "at step")
        parts.append(table(head, rows, label="Best and last validation scores"))
        parts.append(
            note(
                f"Validation {METRIC_NAMES[run.metric]} during training. The best of many validations flatters: it was "
                "chosen on the images it is computed on. The score at the last step was not."
            )
        )
    if found.tally is not None:
        images = len(found.tally.ids)
        few = f" With {images} images the interval itself is rough." if images < _FEW else ""
        parts.append(
            note(
                f"This page judges the shipped model on {_images(found)} ({esc(found.tally.part)}). Intervals: "
                f"bootstrap over these images, 2,000 draws.{few}"
            )
        )
    parts.append(_published(found))
    return chapter("result", "Result", *parts)


def _published(found: Material) -> str:
    number = found.published
    if number is None:
        if found.run.recipe.get("expected"):
            return note("No number is published for this split.")
        return ""
    ours = ""
    if number.metric == found.run.metric and found.scores is not None and found.tally is not None:
        if found.tally.part == number.part:
            interval = between(found.scores.main)
            ours = f"{percent(found.scores.main.value)} %" + (f" ({interval})" if interval else "")
    curve = found.run.curve(f"val/{number.metric}")
    if not ours and curve:
        ours = f"{percent(max(value for _, value in curve))} % at best"
    row = (esc(number.metric), percent(number.value), ours or "n/a", esc(number.split or ""), esc(number.source))
    return table(("score", "published, %", "ours", "split", "source"), [row], label="Published number beside ours")


def _twin(found: Material) -> str:
    """Answer whether unlabeled data helped, with what the answer rests on."""
    title = "Did the unlabeled images help?"
    if found.supervised:
        return chapter("twin", title, note("This run used no unlabeled images."))
    if found.twin is None:
        return chapter(
            "twin",
            title,
            note(
                "Not known: there is no run to compare with. Train one: <code>halfmask train --resume "
                f"{esc(found.run.path)} --twin</code>, or name one that you have with <code>--twin RUN</code>."
            ),
        )
    if found.gain is None or found.twin_scores is None or found.scores is None:
        why = found.missing.get("twin") or "The twin could not be compared on the same images (see above)."
        return chapter("twin", title, note(esc(why)))
    kind, sentence = verdict(found.gain.main)
    metric = METRIC_NAMES[found.run.metric]
    spread = between(found.gain.main, True)
    text = (
        f'<p class="verdict {kind}"><b>{sentence}.</b> {metric} {percent(found.scores.main.value)} % with them, '
        f"{percent(found.twin_scores.main.value)} % without: {signed(found.gain.main.value)} points"
        + (f", 95 % interval {spread}" if spread else "")
        + f" on {_images(found)}. {_advice(kind)}</p>"
    )
    return chapter(
        "twin",
        title,
        text,
        *(note(line) for line in _unfair(found.run, found.twin)),
        note(
            "Both models were drawn on the same images. The interval says what other images would change, not what "
            "another seed would: for that train several seeds of both (<code>--seeds 0,1,2</code>) and compare them "
            "with <code>halfmask report</code>."
        ),
    )


def _advice(kind: str) -> str:
    if kind == "good":
        return ""
    if kind == "bad":
        return "Use the twin, or look at the pseudo-labels below for what they got wrong."
    return "The simpler run without them is as good as far as these images can tell."


def _images(found: Material) -> str:
    assert found.tally is not None
    count = len(found.tally.ids)
    return f"{count:,} image{'s' if count != 1 else ''}"


def _unfair(run: Run, twin: Run) -> list[str]:
    """What differs between a run and its twin, apart from the unlabeled images."""
    found = []
    if run.steps != twin.steps:
        found.append(f"Not equal: the twin trained {twin.steps:,} steps, the run {run.steps:,}.")
    lists = ("labeled", "val")
    if any(run.split.get(n, {}).get("sha256") != twin.split.get(n, {}).get("sha256") for n in lists):
        found.append("Not equal: the twin's lists of labeled or validation images are others.")
    parts = {"network": "model", "optimizer": "optim"}
    found += [
        f"Not equal: the twin's {name} differs (section <code>{key}</code> of its recipe)."
        for name, key in parts.items()
        if run.recipe.get(key) != twin.recipe.get(key)
    ]
    if run.seed != twin.seed:
        found.append(f"Not equal: the twin has seed {twin.seed}, the run {run.seed}.")
    return found
