"""Recipes: one YAML file holds one run, every value is checked before any heavy work.

    load("recipes/fixmatch/pascal.yaml", ["data.split=183", "model.encoder.size=base"]) -> Recipe

There is no inheritance between files; variation is by dotted overrides. The entries `method`,
`model.encoder`, `model.decoder`, `model.bottleneck` and `data.dataset` are `{name, **params}`, and the named
class's constructor signature is the schema of the params. All problems are reported in one error.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from halfmask.errors import RecipeError, bullet_list, nearest
from halfmask.plugins import Kind, params_model, resolve


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Entry(BaseModel):
    """`{name, **params}`: a class and its constructor arguments; a bare string is a name without params."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        return dict(self.model_extra or {})


Named = Annotated[Entry, BeforeValidator(_named)]
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelRecipe(_Section):
    """Which network: an encoder and a decoder of ours, or `smp` for any architecture of that library.

    Args:
        name: `segmenter` (encoder + decoder of ours) or `smp`.
        encoder: `{name: resnet, depth: 50, ...}`; for `smp` the library's encoder name.
        decoder: `{name: deeplabv3plus, ...}`; unused for `smp`.
        bottleneck: `null` or `{name: allspark, ...}`.
        arch: smp architecture, for example `unet`.
    """

    name: Literal["segmenter", "smp"] = "segmenter"
    encoder: Named = Entry(name="resnet")
    decoder: Named = Entry(name="deeplabv3plus")
    bottleneck: Named | None = None
    arch: str = "unet"


class BatchRecipe(_Section):
    """Images per step, summed over all devices."""

    labeled: PositiveInt = 8
    unlabeled: PositiveInt = 8


class UnlabeledRecipe(_Section):
    """Unlabeled images from another place than the labeled ones (they need no masks).

    Args:
        root: folder of the images.
        dataset: its layout; `folder` takes every image below `root`.
        list: text file naming the images, or `null` for all.
    """

    root: str
    dataset: Named = Entry(name="folder")
    list: str | None = None


class DataRecipe(_Section):
    """Which images, which of them with masks, and how they are cut.

    Args:
        root: folder of the dataset (`--data`).
        dataset: layout and encoding: `{name: folder | pascal | cityscapes | ade20k | coco | camvid, ...}`.
        split: name of a published or own split: a folder `<splits>/<dataset>/<split>` or `<splits>/<split>` or
            `<root>/splits/<split>` that holds labeled.txt (and unlabeled.txt; else all other training images).
        splits: folder of split lists; `null` looks in `<root>/splits`.
        labeled: how many masks to use (a count, a fraction in (0, 1), or a list file); `null` uses all.
        labeled_seed: which ones, when `labeled` is a number; every class is covered where possible.
        unlabeled: a list file, or `{root, dataset, list}` for another place; `null`: the training images without
            a used mask plus the dataset's unlabeled part.
        val: `auto` (the dataset's validation part; without one, a fifth of the masks is held out if at least
            five are in use), `none`, the name of a part, or a list file.
        crop: side of the training crop in pixels.
        batch: images per step over all devices.
        scale: range of the random scale of the long side.
        flip: probability of a horizontal flip.
        pad: fill of crops that reach over the image: `mean` color, or `black` before normalization.
        resample: filter of the random scale.
        labeled_cut: repeat the labeled list and cut it to the unlabeled length (published lists of AllSpark and
            UniMatch), instead of reshuffling the whole list on each pass.
        independent_shuffle: labeled and unlabeled orders are drawn independently; `false`: labeled entry i always
            meets unlabeled entry i.
        drop_last: leave out a last, smaller batch of each pass.
        workers: loader processes; `auto` = cores - 1, at most 8.
        cache: `none`, or `memmap`: decoded images in `<run>/cache`, filled on first use.
    """

    root: str | None = None
    dataset: Named = Entry(name="folder")
    split: str | None = None
    splits: str | None = None
    labeled: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | str | None = None
    labeled_seed: int = 0
    unlabeled: str | UnlabeledRecipe | None = None
    val: str = "auto"
    crop: Annotated[int, Field(ge=16)] = 320
    batch: BatchRecipe = BatchRecipe()
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    flip: Fraction = 0.5
    pad: Literal["mean", "black"] = "mean"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    labeled_cut: bool = False
    independent_shuffle: bool = True
    drop_last: bool = True
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    cache: Literal["none", "memmap"] = "none"


class OptimRecipe(_Section):
    """Optimizer and schedule; the learning rate is a pure function of the step.

    Args:
        name: `sgd` or `adamw`.
        lr: rate of the encoder.
        decoder_lr_scale: factor for everything that is not the encoder.
        weight_decay: applied to all parameters, or without norms and biases (`decay_norm_bias: false`).
        momentum: of SGD.
        betas: of AdamW.
        schedule: `poly` (1 - t/T)^power, `cosine`, or `constant`.
        power: of `poly`.
        warmup_steps: linear increase from 0 over so many steps.
        schedule_lag: 1 = the rate is set after each step, so that steps 0 and 1 both run at the base rate.
        reference_batch: total labeled images for which `lr` was chosen; `lr` is scaled linearly with the batch.
        clip_norm: largest gradient norm, or `null`.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    decoder_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_norm_bias: bool = True
    momentum: Fraction = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule_lag: Literal[0, 1] = 0
    reference_batch: PositiveInt | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class EvalRecipe(_Section):
    """The evaluation protocol; it is stored beside every number.

    Args:
        mode: `whole` image, or `slide`: overlapping windows with summed probabilities.
        window: side of a window; `null` = the training crop.
        stride: step of the windows; `null` = floor(2 * window / 3).
        border: last window moved back (`shift`) or truncated (`clip`).
        fit: how an image reaches a size the network takes: `pad` (reflect, cropped back) or `resize`
            (nearest multiple of the encoder's stride, half up).
        scales: image scales whose probabilities are averaged.
        flip: average with the mirrored image.
        absent_classes: leave classes that occur nowhere out of the mean (`skip`) or count them as 0 (`zero`).
        select_on: part on which the best checkpoint is chosen.
        batch: windows (or images of equal size) per forward.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    border: Literal["shift", "clip"] = "shift"
    fit: Literal["pad", "resize"] = "pad"
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = False
    absent_classes: Literal["skip", "zero"] = "skip"
    select_on: Literal["val", "test"] = "val"
    batch: PositiveInt = 4


class RunRecipe(_Section):
    """How long, on what, and what is kept.

    Args:
        epochs: passes over the unlabeled list (the labeled one for supervised methods); or give `steps`.
        steps: optimizer steps; wins over `epochs`.
        seed: of initialization, data order, augmentation.
        precision: `auto` = bfloat16 autocast where the device has it natively and is an accelerator, else 32-true.
        accelerator: `auto` takes the GPU when there is one.
        devices: processes, one device each.
        nodes: machines.
        eval_every: steps between validations; `null` = once per epoch, at least 10 times in a run.
        log_every: steps between lines of metrics.jsonl.
        deterministic: deterministic kernels.
        compile: compile encoder and decoder.
        channels_last: memory layout of images and weights, for CNN encoders on a GPU.
        logger: extra loggers beside metrics.jsonl.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    eval_every: PositiveInt | None = None
    log_every: PositiveInt = 20
    deterministic: bool = False
    compile: bool = False
    channels_last: bool = False
    logger: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"


class ExpectedRecipe(_Section):
    """The published number this recipe is compared with by reports."""

    metric: str = "miou"
    value: float | dict[str, float]
    source: str


class Recipe(_Section):
    """Everything that defines a run."""

    method: Named = Entry(name="fixmatch")
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optim: OptimRecipe = OptimRecipe()
    eval: EvalRecipe = EvalRecipe()
    run: RunRecipe = RunRecipe()
    expected: ExpectedRecipe | None = None
    origins: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    def to_yaml(self, origins: bool = False) -> str:
        """Write the recipe with every default filled in; with `origins`, each value's source as a comment."""
        return _dump(self.model_dump(mode="json"), self.origins if origins else None)


def load(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Recipe:
    """Read a recipe, apply dotted overrides, and check everything at once.

    Args:
        source: a YAML file, a mapping, or `None` for the defaults.
        overrides: `["data.split=183", ...]` or `{"data.split": "183"}`; they win over the file.

    Raises:
        RecipeError: all problems together: unknown keys with the nearest name, wrong types, values out of range.
    """
    where = str(source) if isinstance(source, str | Path) else "recipe"
    raw = _read(source) if isinstance(source, str | Path) else _plain(source or {})
    origins = {key: f"file {where}" if isinstance(source, str | Path) else "argument" for key in _flatten(raw)}
    problems: list[str] = []
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_split_override(item) for item in overrides]
    for key, value in pairs:
        _set(raw, key, value, problems)
        origins = {known: origin for known, origin in origins.items() if not f"{known}.".startswith(f"{key}.")}
        origins |= {known: "override" for known in (_flatten({key: value}) if isinstance(value, dict) else [key])}
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(item, Recipe, raw) for item in error.errors()]
    filled = _check_entries(raw, problems)
    if problems:
        raise RecipeError(
            f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n{bullet_list(problems, limit=30)}"
        )
    assert recipe is not None
    for dotted, params in filled.items():
        recipe = _replace_entry(recipe, dotted, params)
    keys = _flatten(recipe.model_dump(mode="json"))
    return recipe.model_copy(update={"origins": {key: _origin(key, origins) for key in keys}})


def entry_kinds() -> dict[str, Kind]:
    """Give the dotted keys that name a class, and the kind of class."""
    return {
        "method": "methods",
        "model.encoder": "encoders",
        "model.decoder": "decoders",
        "model.bottleneck": "bottlenecks",
        "data.dataset": "datasets",
        "data.unlabeled.dataset": "datasets",
    }


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file. Shipped recipes: halfmask list recipes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a text file ({error}).") from None
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys {', '.join(_sections())}.")
    return raw


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _split_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {text!r} is not of the form key=value, for example data.split=183.")
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads 1e-4 as a string.
        return key, float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not valid YAML ({error}).") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in {"nan", "inf", "-inf", "infinity", "-infinity"} and "_" not in text


def _set(raw: dict[str, Any], dotted: str, value: Any, problems: list[str]) -> None:
    *parents, last = dotted.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        if isinstance(node.get(part), str) and ".".join(parents[: depth + 1]) in entry_kinds():
            node[part] = {"name": node[part]}
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            problems.append(f"{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section.")
            return
    old = node.get(last)
    if dotted in entry_kinds() and isinstance(value, str) and isinstance(old, dict) and old.get("name") == value:
        return  # the same class named again: its params stay
    node[last] = value


def _check_entries(raw: dict[str, Any], problems: list[str]) -> dict[str, dict[str, Any]]:
    """Check each `{name, **params}` against its class; give the params with defaults filled in."""
    filled: dict[str, dict[str, Any]] = {}
    for dotted, kind in entry_kinds().items():
        value = _get(raw, dotted)
        if value is None and dotted in {"model.bottleneck", "data.unlabeled.dataset"}:
            continue
        if _get(raw, "model.name") == "smp" and dotted in {"model.encoder", "model.decoder"}:
            continue  # names of the smp library
        entry = _default_entry(dotted) if value is None else _named(value)
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            if value is None or not isinstance(value, dict) or "name" not in value:
                default = _default_entry(dotted)
                if isinstance(value, dict) and default is not None:
                    entry = {**default, **value}
                else:
                    continue  # already reported by the section's model
        try:
            cls = resolve(kind, entry["name"])
        except RecipeError as error:
            problems.append(f"{dotted}: {error}")
            continue
        schema = params_model(cls)
        params = {key: item for key, item in entry.items() if key != "name"}
        try:
            checked = schema.model_validate(params)
        except ValidationError as error:
            for item in error.errors():
                problems.append(_explain(item, schema, params, prefix=dotted, owner=f"{kind} {entry['name']}"))
            continue
        filled[dotted] = {"name": entry["name"], **checked.model_dump(mode="json")}
    return filled


def _default_entry(dotted: str) -> dict[str, Any] | None:
    if dotted == "data.unlabeled.dataset":
        return {"name": "folder"}
    value: Any = Recipe()
    for part in dotted.split("."):
        value = getattr(value, part)
    return value.model_dump() if isinstance(value, Entry) else None


def _replace_entry(recipe: Recipe, dotted: str, params: dict[str, Any]) -> Recipe:
    def replace(section: BaseModel, parts: list[str]) -> BaseModel:
        if len(parts) == 1:
            return section.model_copy(update={parts[0]: Entry.model_validate(params)})
        child = getattr(section, parts[0])
        return section.model_copy(update={parts[0]: replace(child, parts[1:])})

    return typing.cast(Recipe, replace(recipe, dotted.split(".")))


def _get(raw: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return None
        raw = raw[part]
    return raw


def _flatten(raw: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in raw.items():
        dotted = f"{prefix}{key}"
        keys += _flatten(value, f"{dotted}.") if isinstance(value, dict) and value else [dotted]
    return keys


def _origin(key: str, origins: dict[str, str]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in origins:
            return origins[prefix]
    # `method: fixmatch` in a file is `method.name` when resolved.
    return "default"


def _sections() -> list[str]:
    return [name for name in Recipe.model_fields if name != "origins"]


def _explain(
    item: Any, schema: type[BaseModel], raw: Any, prefix: str = "", owner: str = ""
) -> str:
    """Say in one line what is wrong with one key, what is allowed, and the nearest name."""
    location = [str(part) for part in item["loc"]]
    keys = _key_path(location, schema)
    dotted = ".".join(filter(None, [prefix, *keys]))
    if item["type"] == "extra_forbidden":
        parent = _schema_at(schema, keys[:-1])
        known = [name for name in parent.model_fields if name != "origins"] if parent else []
        place = f" of {owner}" if owner else ""
        return f"{dotted} is not a parameter{place}.{_nearest_field(keys[-1], parent)} Known: {', '.join(known)}."
    field = _field_at(schema, keys)
    allowed = f" Allowed: {_describe(field)}." if field is not None else ""
    if item["type"] == "missing":
        return f"{dotted} is required and has no default.{allowed}"
    return f"{dotted}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}.{allowed}"


def _key_path(location: list[str], schema: type[BaseModel]) -> list[str]:
    """Drop pydantic's names of union members from an error location."""
    keys: list[str] = []
    for part in location:
        parent = _schema_at(schema, keys)
        if parent is None:
            break
        keys.append(part)
    return keys


def _schema_at(schema: type[BaseModel], keys: list[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = schema
    for key in keys:
        if current is None or key not in current.model_fields:
            return None
        current = _model_in(current.model_fields[key].annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for member in get_args(annotation):
        found = _model_in(member)
        if found is not None:
            return found
    return None


def _field_at(schema: type[BaseModel], keys: list[str]) -> Any:
    parent = _schema_at(schema, keys[:-1]) if keys else None
    return parent.model_fields.get(keys[-1]) if parent else None


def _nearest_field(key: str, parent: type[BaseModel] | None) -> str:
    if parent is None:
        return ""
    hint = nearest(key, parent.model_fields)
    if hint:
        name = hint.split("`")[1]
        return f"{hint[:-1]} ({_describe(parent.model_fields[name])})?"
    return ""


def _describe(field: Any) -> str:
    """Describe type, range and default of a field: `float in [0, 1], default 0.95`."""
    text = describe_type(field.annotation)
    lower, upper = "", ""
    for constraint in field.metadata:
        if getattr(constraint, "ge", None) is not None:
            lower = f"[{constraint.ge}"
        if getattr(constraint, "gt", None) is not None:
            lower = f"({constraint.gt}"
        if getattr(constraint, "le", None) is not None:
            upper = f"{constraint.le}]"
        if getattr(constraint, "lt", None) is not None:
            upper = f"{constraint.lt})"
    if lower or upper:
        text += f" in {lower or '(-inf'}, {upper or 'inf)'}"
    return text if field.is_required() else f"{text}, default {field.get_default(call_default_factory=True)!r}"


def describe_type(annotation: Any) -> str:
    """Write a type annotation the way a user would: `a | b`, `int`, `one of 'x', 'y'`."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(annotation))
    if origin is Annotated:
        return describe_type(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe_type(member) for member in get_args(annotation))
    if origin is not None:
        inner = ", ".join("..." if member is Ellipsis else describe_type(member) for member in get_args(annotation))
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    if annotation is type(None):
        return "null"
    return getattr(annotation, "__name__", str(annotation))


def _dump(value: dict[str, Any], origins: dict[str, str] | None) -> str:
    if origins is None:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    lines: list[str] = []

    def write(node: dict[str, Any], prefix: str, indent: str) -> None:
        for key, item in node.items():
            dotted = f"{prefix}{key}"
            if isinstance(item, dict) and item:
                lines.append(f"{indent}{key}:")
                write(item, f"{dotted}.", f"{indent}  ")
            else:
                text = yaml.safe_dump(item, default_flow_style=True, allow_unicode=True, width=10_000)
                text = text.removesuffix("...\n").strip()
                lines.append(f"{indent}{key}: {text}  # {origins.get(dotted, 'default')}")

    write(value, "", "")
    return "\n".join(lines) + "\n"
