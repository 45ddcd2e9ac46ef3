"""From the `model` section of a recipe to networks, and from a network's `spec` back to a network.

build = Builder(recipe.model, task, crop=320)
student = build()                                # fresh, independently initialized
other = build(encoder={"depth": 101})            # parts of the section replaced
again = build_model(student.spec)                # same architecture, random weights
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from halfmask.errors import RecipeError, bullet_list
from halfmask.models.bottlenecks._bottleneck import require_map
from halfmask.models.ensemble import Ensemble
from halfmask.models.model import ChangeSegmenter, Classifier, Model, Network, Segmenter
from halfmask.plugins import Kind, arguments, params_model, resolve
from halfmask.recipe.explain import explain
from halfmask.recipe.sections import Entry, ModelRecipe
from halfmask.task import Task

_TASK = TypeAdapter(Task)
_ENTRIES: dict[str, Kind] = {"encoder": "encoders", "decoder": "decoders", "bottleneck": "bottlenecks"}
_FINAL: dict[str, type[Model]] = {"segmentation": Segmenter, "change": ChangeSegmenter, "classification": Classifier}


class Builder:
    """Makes networks of one recipe for one task.

    Args:
        recipe: the `model` section.
        task: decides the number of logits.
        crop: training crop side in pixels.
        channels: bands of the images.
        mean: per band, for images in [0, 1]; `None` takes the encoder's.
        std: per band; `None` takes the encoder's.
        pretrained: `False` ignores `weights` entries: the caller will load its own.
    """

    def __init__(
        self,
        recipe: ModelRecipe,
        task: Task,
        *,
        crop: int,
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        pretrained: bool = True,
    ) -> None:
        self.recipe, self.task, self.crop = recipe, task, crop
        self.channels, self.mean, self.std, self.pretrained = channels, mean, std, pretrained

    def __call__(self, **overrides: Any) -> Model:
        """Build a network; overrides replace parts of the section, for example `encoder={"depth": 101}`.

        Raises:
            RecipeError: an override is unknown, or the parts do not fit together.
            CheckpointError: pretrained weights cannot be had.
        """
        section = _merge(self.recipe.model_dump(mode="json"), overrides)
        recipe = _validated(section)
        model = self._smp(recipe) if recipe.name == "smp" else self._own(recipe)
        model.spec = {
            "model": recipe.model_dump(mode="json"),
            "task": _plain_task(self.task),
            "channels": self.channels,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "crop": self.crop,
        }
        return model

    def _own(self, recipe: ModelRecipe) -> Model:
        overrides: dict[str, Any] = {"in_channels": self.channels}
        if not self.pretrained:
            overrides["weights"] = None
        if recipe.encoder.params.get("frozen_stages") and recipe.encoder.params["weights"] is None:
            overrides["frozen_stages"] = 0  # random weights that never learn
        if recipe.encoder.params.get("img_size", 0) is None:  # all parameters are filled in: it has this one
            overrides["img_size"] = self.crop
        encoder = _construct("encoders", recipe.encoder, **overrides)
        decoder = _construct("decoders", recipe.decoder, encoder.channels, encoder.strides)
        bottleneck = None
        if recipe.bottleneck is not None:
            require_map(encoder, self.channels)
            bottleneck = _construct("bottlenecks", recipe.bottleneck, encoder.channels[-1])
        final = _FINAL[self.task.kind]
        return final(encoder, decoder, self.task.n_classes, bottleneck, mean=self.mean, std=self.std)

    def _smp(self, recipe: ModelRecipe) -> Model:
        if recipe.bottleneck is not None:
            raise RecipeError(
                f"a bottleneck ({recipe.bottleneck.name}) needs an encoder and a decoder of ours: set "
                "model.name=segmenter with model.encoder and model.decoder, or choose a method without one and "
                "model.bottleneck=null."
            )
        if self.task.kind == "classification":
            raise RecipeError(
                "model.name=smp gives masks, not labels. For classification use model.name=segmenter with "
                "model.decoder.name=pool and an encoder such as resnet or timm."
            )
        # Imported here: the library and all its encoders take longer to import than everything else.
        from halfmask.models.smp import SmpSegmenter

        params = recipe.encoder.params
        weights = params.pop("weights", None)
        return SmpSegmenter(
            recipe.arch,
            recipe.encoder.name,
            self.task.n_classes,
            in_channels=self.channels,
            weights=weights if self.pretrained else None,
            options=params,
            mean=self.mean,
            std=self.std,
        )


def read_task(plain: Mapping[str, Any]) -> Task:
    """Build the task from plain data, as stored in bundles and checkpoints.

    Raises:
        pydantic.ValidationError: an entry is missing, or of a wrong type.
    """
    return _TASK.validate_python(plain)


def build_network(spec: Mapping[str, Any]) -> Network:
    """Build what `Network.spec` describes: a model, or an ensemble of several."""
    if "ensemble" in spec:
        return Ensemble(*(build_model(member) for member in spec["ensemble"]))
    return build_model(spec)


def build_model(spec: Mapping[str, Any], *, pretrained: bool = False) -> Model:
    """Build the network that `Model.spec` describes.

    Args:
        spec: plain data, as stored in bundles and checkpoints.
        pretrained: also load the encoder's published weights (not needed where a state dict follows).
    """
    builder = Builder(
        ModelRecipe.model_validate(spec["model"]),
        read_task(spec["task"]),
        crop=spec["crop"],
        channels=spec["channels"],
        mean=None if spec["mean"] is None else tuple(spec["mean"]),
        std=None if spec["std"] is None else tuple(spec["std"]),
        pretrained=pretrained,
    )
    return builder()


def _merge(section: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(section)
    for key, value in overrides.items():
        if isinstance(value, Entry):
            value = value.model_dump(mode="json")
        old = merged.get(key)
        if key in _ENTRIES and isinstance(value, str):
            value = {"name": value}
        same = isinstance(old, dict) and isinstance(value, Mapping) and value.get("name", old["name"]) == old["name"]
        if key == "bottleneck" and isinstance(old, dict) and isinstance(value, Mapping) and not same:
            raise RecipeError(
                f"the method works with bottleneck {value['name']}, but model.bottleneck names {old['name']}. "
                f"Set model.bottleneck={value['name']} or null, or choose another method."
            )
        # Params belong to the class they were written for: another name starts from its own defaults.
        merged[key] = {**old, **value} if same and isinstance(old, dict) else value
    return merged


def _validated(section: dict[str, Any]) -> ModelRecipe:
    """Check the section and fill in every default of the named classes."""
    try:
        recipe = ModelRecipe.model_validate(section)
    except ValidationError as error:
        problems = [explain(item, ModelRecipe, section, prefix="model") for item in error.errors()]
        raise RecipeError(f"model: cannot be built\n{bullet_list(problems)}", "H303") from None
    if recipe.name == "smp":
        return recipe
    filled: dict[str, Entry] = {}
    for part, kind in _ENTRIES.items():
        entry: Entry | None = getattr(recipe, part)
        if entry is None:
            continue
        schema = params_model(resolve(kind, entry.name))
        try:
            params = schema.model_validate(entry.params)
        except ValidationError as error:
            owner = f"{kind} {entry.name}"
            problems = [
                explain(item, schema, entry.params, prefix=f"model.{part}", owner=owner) for item in error.errors()
            ]
            raise RecipeError(f"model.{part}: cannot be built\n{bullet_list(problems)}", "H303") from None
        filled[part] = Entry(name=entry.name, **params.model_dump(mode="json"))
    return recipe.model_copy(update=filled)


def _construct(kind: Kind, entry: Entry, *positional: Any, **overrides: Any) -> Any:
    cls = resolve(kind, entry.name)
    return cls(*positional, **arguments(cls, entry.params | overrides))


def _plain_task(task: Task) -> dict[str, Any]:
    plain = asdict(task)
    plain["classes"] = list(task.classes)
    plain["foreground"] = None if task.foreground is None else list(task.foreground)
    plain["palette"] = None if task.palette is None else [list(color) for color in task.palette]
    return plain


def task_of(classes: Task | Sequence[str] | int) -> Task:
    """Return the task of segmentation with these classes, given by name or by number.

    >>> task_of(2).classes
    ('class 0', 'class 1')
    """
    if isinstance(classes, Task):
        return classes
    if isinstance(classes, int):
        classes = [f"class {number}" for number in range(classes)]
    return Task("segmentation", tuple(classes))


def create_model(
    encoder: str | Mapping[str, Any] = "resnet",
    decoder: str | Mapping[str, Any] = "deeplabv3plus",
    classes: Task | Sequence[str] | int = 2,
    *,
    weights: str | None = None,
    channels: int = 3,
    crop: int = 320,
) -> Model:
    """Build one network for logits (B, K, H, W) of images (B, C, H, W) in [0, 1].

    Its `spec` describes it, so that `halfmask.save_bundle` can store it and `halfmask.load_bundle` build it again.

    Args:
        encoder: a name, or a mapping with its parameters: `{"name": "resnet", "depth": 101}`.
        decoder: likewise.
        classes: names of the classes, their number, or a whole `halfmask.Task` (change detection, classification).
        weights: pretrained weights of the encoder (`imagenet`, a file, ...); `None`: random ones.
        channels: bands of the images.
        crop: side of the training crop; the default window of sliding inference.

    Raises:
        RecipeError: an unknown name or parameter, or parts that do not fit together.
        CheckpointError: the pretrained weights cannot be loaded.

    >>> model = create_model({"name": "resnet", "depth": 18}, "segformer", ["ground", "patch"])
    >>> model.spec["task"]["classes"]
    ['ground', 'patch']
    """
    entry = {"name": encoder} if isinstance(encoder, str) else dict(encoder)
    if weights is not None:
        entry["weights"] = weights
    build = Builder(ModelRecipe(), task_of(classes), crop=crop, channels=channels)
    return build(encoder=entry, decoder=decoder)
