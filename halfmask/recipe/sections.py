"""The sections of a recipe: every key, its type, range, default and meaning."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from halfmask.recipe.explain import explain_all
from halfmask.recipe.raw import without_retired_parts


class Section(BaseModel):
    """A frozen part of a recipe that forbids unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def named(value: Any) -> Any:
    """Turn a bare string into `{name: string}`."""
    return {"name": value} if isinstance(value, str) else value


class Entry(BaseModel):
    """`{name, **params}`: a class and its constructor arguments; a bare string is a name without params."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Return constructor arguments as plain data."""
        return dict(self.model_extra or {})


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]  # split names such as 183 read as numbers
Named = Annotated[Entry, BeforeValidator(named)]


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the first number must not be above the second: [{value[1]:g}, {value[0]:g}]")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Crop = Annotated[int, Field(ge=16, le=16_384)]
MOST_OVERLAPS = 16  # windows over a pixel, along each side
MOST_STEPS = 100_000_000  # years on any machine
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Window = Annotated[int, Field(ge=16, le=65_536)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # what PyTorch takes
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelRecipe(Section):
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

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        return without_retired_parts(value) if isinstance(value, dict) else value


class BatchRecipe(Section):
    """Images per step, summed over all devices.

    Args:
        labeled: images with masks.
        unlabeled: images without; one such batch per draw of the method.
    """

    labeled: Count = 8
    unlabeled: Count = 8


class UnlabeledRecipe(Section):
    """Unlabeled images from another place than the labeled ones (they need no masks).

    Args:
        root: folder of the images.
        dataset: its layout; `folder` takes every image below `root`.
        list: text file naming the images, or `null` for all.
    """

    root: str
    dataset: Named = Entry(name="folder")
    list: str | None = None


class WeakRecipe(Section):
    """What is known of unlabeled images besides their pixels.

    Args:
        tags: file (or files) of image-level labels: `image,classes` (CSV) or `image<TAB>class,class`.
        masks: folder (or folders) of pseudo-masks: PNG of class ids, 255 = unknown, named like their images; an image
            without one has no known pixel. With `tags` alone, a first stage makes them by class activation maps.
        partial: images without tags are allowed, and unlabeled as usual.
        stage: dotted recipe keys that differ while tags are learned, for example `{run.steps: 500, method.high: 0.4}`.
    """

    tags: str | list[str] | None = None
    masks: str | Annotated[list[str], Field(min_length=1)] | None = None
    partial: bool = False
    stage: dict[str, Any] = Field(default_factory=dict)


Scale = Annotated[float, Field(gt=0, le=100)]
Range = Annotated[tuple[Scale, Scale], AfterValidator(_rising)]
# A folder of the run, a part of metric names and of dotted keys.
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class DomainRecipe(Section):
    """One of several datasets that are learned together; what is not said here is as in `data`.

    Args:
        root: folder of the dataset.
        dataset: layout and encoding.
        split: name of a published or own split.
        splits: folder of split lists.
        labeled: how many masks to use, or a list file.
        labeled_seed: which ones, when `labeled` is a number.
        unlabeled: a list file or another place; `null`: the training images without a used mask.
        val: validation images.
        crop: side of the training crop; `null`: `data.crop`.
        scale: range of the random scale of the long side; `null`: `data.scale`.
    """

    root: str | None = None
    dataset: Named = Entry(name="folder")
    split: Annotated[str, BeforeValidator(_as_text)] | None = None
    splits: str | None = None
    labeled: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | str | None = None
    labeled_seed: Seed = 0
    unlabeled: str | UnlabeledRecipe | None = None
    val: str = "auto"
    crop: Crop | None = None
    scale: Range | None = None


class DataRecipe(Section):
    """Which images, which of them with masks, and how they are cut.

    Args:
        root: folder of the dataset (`--data`).
        domains: several datasets instead, by name, learned in turns by a method that wraps another; keys of one:
            `root, dataset, split, splits, labeled, labeled_seed, unlabeled, val, crop, scale`.
        dataset: layout and encoding: `{name: folder | pascal | cityscapes | ade20k | coco | camvid | sun_rgbd, ...}`;
            image pairs: `change_folder | levir | whu`; one label per image: `class_folder | cifar | stl10`.
        split: name of a published or own split: a folder `<splits>/<dataset>/<split>` or `<splits>/<split>` or
            `<root>/splits/<split>` that holds labeled.txt (and unlabeled.txt; else all other training images).
        splits: folder of split lists; `null` looks in `<root>/splits`.
        labeled: how many masks to use (a count, a fraction in (0, 1), or a list file); `null` uses all.
        labeled_seed: which ones, when `labeled` is a number; every class is covered where possible.
        unlabeled: a list file, or `{root, dataset, list}` for another place (all its images but those of `root` that
            are labeled, validate or test); `null`: the training images without a used mask plus the dataset's
            unlabeled part.
        weak: image-level labels or pseudo-masks of the unlabeled images: `{tags: FILE}` or `{masks: DIR}`.
        val: `auto` (val.txt beside the lists of `split`, else the dataset's validation part; without one, a fifth of
            the masks is held out if at least five are in use and no list names them), `none`, the name of a part, or
            a list file.
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
        balance: `none`: the labeled list is walked pass after pass; `classes`: each labeled crop is drawn by class: a
            class, then an image that shows it, then a crop that holds one of its pixels. For rare classes.
        workers: loader processes; `auto` = cores - 1, at most 8.
        cache: of decoded images in `<run>/cache`, filled on first use: `none`, `memmap` (as they are), or `jpeg95`
            (smaller, not bit-exact; masks stay as they are).
    """

    root: str | None = None
    domains: Annotated[dict[DomainName, DomainRecipe], Field(min_length=2)] | None = None
    dataset: Named = Entry(name="folder")
    split: Annotated[str, BeforeValidator(_as_text)] | None = None  # `data.split=183` is a name, not a number
    splits: str | None = None
    labeled: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | str | None = None
    labeled_seed: Seed = 0
    unlabeled: str | UnlabeledRecipe | None = None
    weak: WeakRecipe | None = None
    val: str = "auto"
    crop: Crop = 320
    batch: BatchRecipe = BatchRecipe()
    scale: Range = (0.5, 2.0)
    flip: Fraction = 0.5
    pad: Literal["mean", "black"] = "mean"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    labeled_cut: bool = False
    independent_shuffle: bool = True
    drop_last: bool = True
    balance: Literal["none", "classes"] = "none"
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    cache: Literal["none", "memmap", "jpeg95"] = "none"


def _checked_optimizers(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the values of each optimizer as those of the section they are in."""
    for key, values in given.items():
        if odd := {"optimizers", "reference_batch", "class_weights"} & values.keys():
            raise ValueError(f"{key}: {', '.join(sorted(odd))} cannot differ between optimizers")
        try:
            OptimRecipe.model_validate(values)
        except ValidationError as error:
            problems = explain_all(error.errors(), OptimRecipe, values)
            raise ValueError(f"{key}: {'; '.join(problems)}") from None
    return given


class OptimRecipe(Section):
    """Optimizer and schedule; the learning rate is a pure function of the step.

    Args:
        name: `sgd`, `adamw` or `adam`.
        lr: rate of the encoder.
        decoder_lr_scale: factor for everything that is not the encoder.
        weight_decay: applied to all parameters, or to some (`decay_norm_bias`).
        decay_norm_bias: decay norms and biases too.
        momentum: of SGD.
        betas: of AdamW and Adam.
        schedule: `poly` (1 - t/T)^power; `cosine` (1 + cos(pi t/T)) / 2; `cosine_7_16` cos(7 pi t/(16 T)), which ends
            at a fifth; or `constant`.
        power: of `poly`.
        warmup_steps: linear increase from 0 over so many steps.
        schedule_lag: 1 = the rate is set after each step, so that steps 0 and 1 both run at the base rate.
        reference_batch: total labeled images for which `lr` was chosen; `lr` is scaled linearly with the batch.
        clip_norm: largest gradient norm, or `null`.
        class_weights: of the classes in the loss of labeled images, from the pixels each has in the labeled masks:
            `none`; `inverse` to them; or `effective`, which weighs rare classes up and leaves frequent ones alike.
        optimizers: of a method that has several: what differs for one of them, by its key, for example `{flow: {name:
            adam, lr: 0.001, clip_norm: 50}}`. What is not given is the method's own, else as above.
    """

    name: Literal["sgd", "adamw", "adam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    decoder_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_norm_bias: bool = True
    momentum: Fraction = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Literal["poly", "cosine", "cosine_7_16", "constant"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule_lag: Literal[0, 1] = 0
    reference_batch: PositiveInt | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    class_weights: Literal["none", "inverse", "effective"] = "none"
    optimizers: Annotated[dict[str, dict[str, Any]], AfterValidator(_checked_optimizers)] = Field(default_factory=dict)

    def of(self, key: str) -> "OptimRecipe":
        """Return the section of one optimizer of the method."""
        whole = self.model_dump(exclude={"optimizers"})
        return OptimRecipe.model_validate(whole | self.optimizers.get(key, {}))


class EvalRecipe(Section):
    """The evaluation protocol; it is stored beside every number.

    Args:
        mode: `whole` image; `slide`: overlapping windows with summed probabilities; or `center_crop`: only the middle
            window of each image is predicted and scored (predicted masks of a folder are of whole images).
        window: side of a window; `null` = the training crop.
        stride: of the windows; `null` = floor(2 * window / 3).
        border: last window moved back (`shift`) or truncated (`clip`).
        fit: how an image reaches a size the network takes: `pad` (reflect, then crop) or `resize` (nearest multiple).
        scales: image scales whose probabilities are averaged.
        antialias: smooth images that a scale shrinks, as in training; `false`: bilinear, as in published code.
        flip: average with the mirrored image.
        absent_classes: leave classes that occur nowhere out of the mean (`skip`) or count them as 0 (`zero`).
        select_on: part on which the best checkpoint is chosen.
        ship: the network that a run ships: the method's `first` predictor at its best validation, as in its paper; or
            the `best` of all by validation. Fewer than 5 images choose nothing: `best` then ships the last weights, as
            `last` does with any number (`run.average_last`). `overall`: the better of the `best` and `run.twin`.
        batch: windows (or images of equal size) per forward.
        precision: of networks in float32: `32-true`, or `bf16-mixed`, bfloat16 autocast with logits upsampled in
            float32: faster where `run.precision=auto` trains in it, but class maps change where two classes are close.
    """

    mode: Literal["whole", "slide", "center_crop"] = "whole"
    window: Window | None = None
    stride: PositiveInt | None = None
    border: Literal["shift", "clip"] = "shift"
    fit: Literal["pad", "resize"] = "pad"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    antialias: bool = True
    flip: bool = False
    absent_classes: Literal["skip", "zero"] = "skip"
    select_on: Literal["val", "test"] = "val"
    ship: Literal["first", "best", "last", "overall"] = "first"
    batch: Count = 4
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def contradictions(self, crop: int) -> list[str]:
        """List what is wrong with the stride for a window, or for the training crop where no window is named.

        >>> EvalRecipe(mode="slide", window=64, stride=1).contradictions(320)
        ['eval.stride=1: each pixel would be in 4,096 windows of 64, without end. Allowed: int in [4, 64].']
        """
        if self.mode != "slide" or self.stride is None:
            return []
        side = self.window or crop
        least, most = -(-side // MOST_OVERLAPS), side
        if self.stride > most:
            why = f"pixels between the windows of {side} would get no prediction"
        elif self.stride < least:
            why = f"each pixel would be in {(side // self.stride) ** 2:,} windows of {side}, without end"
        else:
            return []
        return [f"eval.stride={self.stride}: {why}. Allowed: int in [{least}, {most}]."]


def _twin(value: Any) -> Any:
    """Read a switch, which this key was in earlier versions and is on the command line."""
    return {True: "control", False: None}[value] if isinstance(value, bool) else value


class RunRecipe(Section):
    """How long, on what, and what is kept.

    Args:
        epochs: passes over the unlabeled list (the labeled one for supervised methods); or give `steps`.
        steps: optimizer steps; wins over `epochs`.
        seed: of initialization, data order, augmentation.
        precision: `auto` = bfloat16 autocast where the device computes in it natively (GPUs since Ampere, CPUs with
            AVX512-BF16), else 32-true; on a CPU also for encoders of depthwise convolutions. A plan times both.
        accelerator: `auto` takes the GPU when there is one.
        devices: processes, one device each.
        nodes: machines.
        eval_every: steps between validations; `null` = once per epoch, but 10 to 20 times in a run.
        log_every: steps between lines of metrics.jsonl.
        deterministic: deterministic kernels.
        stream_loss: take cross-entropies of upsampled logits band by band: far less memory where classes are many (150:
            161 MB per image and copy at 518 pixels), slower where they are few; other losses upsample as usual.
        recompute: activation checkpointing: blocks of the encoder are computed again in the backward pass. Less memory,
            about a third more time, the same gradients.
        compile: compile encoder and decoder.
        channels_last: memory layout of images and weights, for CNN encoders on a GPU, and for EfficientNet-Lite on a
            CPU, too.
        logger: extra loggers beside metrics.jsonl.
        twin: also train what the run is compared with, by equal steps: `control`, the same method without the loss of
            the unlabeled images (`<run>/control`), which says what they bring; plain `supervised` training
            (`<run>/twin`); or `both`.
        passes: which images share a forward pass where there is batch norm: as each paper's code has it (`published`),
            or labeled images alone (`separate`), which then, with `apart`, alone move the running statistics.
        precise_bn: before each validation, take the statistics of batch norm anew from so many clean training images
            (labeled and unlabeled, without strong colors); they are evaluated and shipped, the training goes on with
            its own. 0 = evaluate the averages of the training passes, as published code does.
        average_last: where the last weights are shipped, because no validation chooses (no image, or `eval.ship`),
            ship the mean of the weights over this last part of the run instead of one point of it. A teacher (EMA) is
            a mean already, and stays. 0 = off.
    """

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    steps: Steps | None = None
    seed: Seed = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Count = 1
    nodes: Count = 1
    eval_every: PositiveInt | None = None
    log_every: PositiveInt = 20
    deterministic: bool = False
    stream_loss: bool = False
    recompute: bool = False
    compile: bool = False
    channels_last: bool = False
    logger: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"
    twin: Annotated[Literal["control", "supervised", "both"] | None, BeforeValidator(_twin)] = None
    passes: Literal["published", "separate", "apart"] = "published"
    precise_bn: Annotated[int, Field(ge=0, le=100_000)] = 0
    average_last: Fraction = 0.0
