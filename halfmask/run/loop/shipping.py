"""Which network of a method is shipped, and at which of its validations (`eval.ship`).

`first`: the method's first predictor, as in its paper, at its best validation. `best`: whichever predictor any
validation finds best; of fewer than `FEW_IMAGES` validation images the best score is mostly chance, so that the first
predictor's last weights are shipped, unless it predicts a single class while another one does not. `last`: the same
with any number of images. `overall`: as `best`, and after the run the better of it and what it is compared with
(`halfmask.run.train.compare`). Last weights are a mean over the last part of the run with `run.average_last`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from halfmask.run.loop.validation import Examination

_LEAST_AGREEMENT = 0.9
Rule = Literal["first", "best", "last", "overall"]
FEW_IMAGES = 5


def chooses(rule: Rule, images: int) -> bool:
    """Tell whether the validations of a run choose what it ships; else its last weights are shipped."""
    return images > 0 and (rule == "first" or (rule != "last" and images >= FEW_IMAGES))


class Shipment(NamedTuple):
    """What a validation leads to."""

    name: str  # predictor that is the best choice now
    now: bool  # whether its present weights are to be shipped
    last: bool  # the latest score counts, not the best one


def choose(rule: Rule, found: Examination, best: Mapping[str, float], images: int) -> Shipment:
    """Choose the predictor to ship by one validation."""
    names = list(found.main)
    if rule == "first":
        return Shipment(names[0], names[0] not in best or found.main[names[0]] > best[names[0]], False)
    several = [name for name in names if name not in found.one_class]
    if not chooses(rule, images):
        name = names[0] if names[0] in several or not several else max(several, key=lambda one: found.main[one])
        return Shipment(name, True, True)
    name = max(names, key=lambda one: found.main[one])
    return Shipment(name, not best or found.main[name] > max(best.values()), False)


def describe_last(name: str, images: int, averaged: int) -> str:
    """Say what is shipped where no validation chooses, and why.

    Args:
        name: of the predictor.
        images: to validate on.
        averaged: steps of the end of the run whose weights are averaged; 0: none are.
    """
    what = f"the mean of its weights over the last {averaged} steps" if averaged > 1 else "its last weights"
    if images >= FEW_IMAGES:
        return f"{name}, {what} (eval.ship=last)"
    counts = {0: "no validation image can", 1: "1 validation image cannot"}
    return f"{name}, {what}: {counts.get(images, f'{images} validation images cannot')} tell which step is best"


def describe(
    rule: Rule, shipment: Shipment, found: Examination, best: Mapping[str, float], images: int, averaged: int = 0
) -> str:
    """Say at the end of a run what is shipped; "" of a single network at its best validation."""
    first = next(iter(found.main))
    if shipment.last:
        text = f"ship     {describe_last(shipment.name, images, averaged)}"
        return text if shipment.name == first else f"{text}; {first} predicts a single class"
    name = first if rule == "first" else max(best, key=lambda one: best[one])
    why = "at its best validation, as eval.ship=first has it" if rule == "first" else "by validation"
    others = "".join(f", {one} {score:.1%}" for one, score in best.items() if one != name)
    return f"ship     {name}, {why}: {best[name]:.1%}{' at best' if rule != 'first' else ''}{others}" if others else ""


def warn(one_class: Mapping[str, str]) -> str:
    """Warn of networks that predict a single class on every validation image, though their masks show several."""
    named = ", ".join(f"{name} {label!r}" for name, label in one_class.items())
    return (
        f"warning: [H603] on the validation images these networks predict a single class: {named}. Train longer, use a "
        "pretrained encoder (model.encoder.weights), or balance the classes (data.balance=classes)."
    )


def doubtful_statistics(agreement: Mapping[str, float], recipe: Mapping[str, Any]) -> str:
    """Warn where predictions with the running statistics of batch norm are not those with statistics of clean images.

    Passes apart are advised with DeepLabV3+ only: with a SegFormer head they cost accuracy (`halfmask.plan.table`).

    Args:
        agreement: part of the pixels that keep their class, by predictor.
        recipe: of the run, as plain data.
    """
    low = {name: share for name, share in agreement.items() if share < _LEAST_AGREEMENT}
    if not low:
        return ""
    named = ", ".join(f"{name} {share:.0%}" for name, share in low.items())
    run, decoder = recipe["run"], recipe["model"].get("decoder") or {}
    cures = ["train longer (run.steps)"]
    if run["passes"] == "published" and decoder.get("name") == "deeplabv3plus":
        cures.append("let labeled and unlabeled images pass through the network apart (run.passes=apart)")
    if not run["precise_bn"]:
        cures.append("use the averages of plain images (run.precise_bn=64)")
    return (
        "warning: [H604] the averages in batch norm, which the training collected, do not fit plain images. With "
        f"averages of plain images only so many pixels keep their class: {named}. So the predictions may be poor. To "
        f"mend it: {', or '.join(cures)}; then see which scores better."
    )
