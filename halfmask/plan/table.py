"""The table of networks and methods that a plan chooses from, with reasons: change it here.

A CPU takes EfficientNet-Lite0, whose weights come with the installation: of the networks that cost the same there it
is the only one that begins from ImageNet. Its rate and its decoder follow trials of 150 steps on four data sets (1e-3
for all parts was better than 1e-4 with ten times that for the decoder); channels last takes a third off its steps. All
stages learn: with the first three frozen, as earlier plans had it, labels alone scored less, and unlabeled images made
it worse. Labeled and strong images pass by themselves, and both move the running statistics
(`halfmask.models.statistics`). The method's settings follow trials on facades, aerial images, CamVid and clothing: soft
targets; with a handful of masks and 2000 steps or more unlabeled images weigh as much as labels, after a third of the
run; else a small weight, and labels alone in the first half, because what the teacher does not know yet it teaches not
to learn: rare classes above all (street scenes with 23 masks lost 1.6 points at the full weight). docs/results.md has
the numbers beside their controls. A plan with enough validation images trains on the labels alone, too, and ships what
is better. The row of the GPU is UniMatch V2's published setting (arXiv:2410.10777).
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class NetworkRow:
    """A network that suits a kind of machine.

    Args:
        title: short name for people.
        machine: what it is for.
        reason: why it is chosen there.
        encoder: `model.encoder`; with `weights`, the row is for machines that have them or may fetch them.
        decoder: `model.decoder`, of dense tasks.
        optim: keys of `optim` it is trained with.
        crop: side of the training crop.
        multiple: of the crop.
        batch: labeled and unlabeled images per step, each.
        steps: where no time is given.
        run: keys of `run` that suit it.
    """

    title: str
    machine: Literal["cpu", "gpu"]
    reason: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    optim: dict[str, Any]
    crop: int
    multiple: int
    batch: int
    steps: int
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodRow:
    """A method with the settings it is used with.

    Args:
        name: of the method.
        reason: why.
        params: of the method, where they differ from their defaults.
        optim: keys of `optim` that go with it.
        gently: its parameters where steps are few or masks many (`Limits.long_run`, `Limits.few_masks`).
    """

    name: str
    reason: str
    params: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    gently: dict[str, Any] = field(default_factory=dict)


_DECODER = {"name": "deeplabv3plus", "rates": [6, 12, 18], "aspp": 128, "low": 32, "embedding": 128}
_SMALL_DECODER = {"name": "deeplabv3plus", "rates": [2, 4, 6], "aspp": 48, "low": 16, "embedding": 48}
_ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "decay_norm_bias": False, "warmup_steps": 20}
_APART = {"passes": "apart", "precise_bn": 64, "channels_last": False}  # with DeepLabV3+
_FINE = {**_ADAMW, "lr": 1e-4, "decoder_lr_scale": 10.0}

# Best first; the first whose weights can be had (or that needs none) is taken.
NETWORKS: tuple[NetworkRow, ...] = (
    NetworkRow(
        "DINOv2-S + DPT", "gpu", "the encoder of UniMatch V2's published results",
        {"name": "dinov2", "size": "small", "weights": "lvd142m"}, {"name": "dpt"},
        {"name": "adamw", "lr": 5e-6, "reference_batch": 16, "decoder_lr_scale": 40.0, "weight_decay": 0.01,
         "decay_norm_bias": True, "warmup_steps": 0, "schedule_lag": 1},
        518, 14, 8, 8000, _APART,
    ),
    NetworkRow(
        "ResNet-50 + DeepLabV3+", "gpu", "pretrained on ImageNet",
        {"name": "resnet", "depth": 50, "stem": "deep", "output_stride": 16, "weights": "imagenet"}, _DECODER, _FINE,
        320, 32, 8, 8000, _APART,
    ),
    NetworkRow(
        "EfficientNet-Lite0 + SegFormer", "gpu", "small, pretrained on ImageNet",
        {"name": "efficientnet_lite", "size": "lite0", "weights": "imagenet"}, {"name": "segformer", "embedding": 256},
        _ADAMW, 320, 32, 8, 8000, {"passes": "separate", "precise_bn": 0},
    ),
    NetworkRow(
        "ResNet-18 + DeepLabV3+", "gpu", "small enough to learn from random weights",
        {"name": "resnet", "depth": 18, "stem": "plain", "output_stride": 16}, _DECODER, _ADAMW,
        320, 32, 8, 8000, _APART,
    ),
    NetworkRow(
        "EfficientNet-Lite0 + SegFormer", "cpu", "no GPU: a small network, pretrained on ImageNet",
        {"name": "efficientnet_lite", "size": "lite0", "weights": "imagenet"},
        {"name": "segformer", "embedding": 256}, _ADAMW, 160, 32, 4, 3000,
        {"channels_last": True, "passes": "separate", "precise_bn": 0},  # see the docstring
    ),
    NetworkRow(
        "ResNet-18 + DeepLabV3+", "cpu", "no GPU: a small network, pretrained on ImageNet",
        {"name": "resnet", "depth": 18, "stem": "plain", "output_stride": 32, "weights": "imagenet"}, _SMALL_DECODER,
        _FINE, 192, 32, 4, 1000, _APART,
    ),
    NetworkRow(
        "ResNet-18 at a quarter of its width + DeepLabV3+", "cpu",
        "no GPU: a small network, small crops and few steps; a GPU run will be better",
        {"name": "resnet", "depth": 18, "stem": "plain", "output_stride": 16, "width": 16}, _SMALL_DECODER, _ADAMW,
        160, 32, 4, 1000, _APART,
    ),
)  # fmt: skip

SUPERVISED = MethodRow("supervised", "no image is without a mask, so there is nothing to learn from unlabeled")
ON_CPU = MethodRow(
    "fixmatch",
    "a moving average teaches them, once labels alone have taught",
    {"targets": "soft", "unlabeled_weight": 1.0, "warmup": 0.33, "ema_decay": 0.99, "cutmix": 1.0},
    gently={"unlabeled_weight": 0.3, "warmup": 0.5, "cutmix": 0.5},
)
# Pairs of dates and whole images, on which soft targets were not tried; and where a threshold is asked for.
HARD_ON_CPU = MethodRow(
    "fixmatch",
    "pseudo-labels of a moving average, once labels alone have taught for a third of the run",
    {"targets": "hard", "threshold": 0.9, "warmup": 0.3, "ema_decay": 0.99, "cutmix": 0.5},
)
ON_GPU = MethodRow(
    "unimatch_v2",
    "where to start on a GPU: pseudo-labels of a moving average, two strong views",
    {"ema_decay": 0.996},
)

RECIPES = {"segmentation": "folder", "change": "change_folder", "classification": "classify_folder"}


@dataclass(frozen=True)
class Limits:
    """Where rules switch.

    Args:
        smallest_crop: below it a network sees no context.
        context: images are shrunk until their shorter side is at most so many crops.
        smallest_object: but a small object (a quarter of them are smaller) keeps so many pixels.
        balance_below: a class with less than this part of its even share is drawn more often.
        weigh_below: and with less than this its loss weighs more, too.
        least_steps: a shorter run is refused.
        good_steps: a smaller crop is taken for the sake of so many steps.
        long_run: below so many steps unlabeled images teach late and with little weight;
        few_masks: and with more masks than that, too.
        most_times: a long budget is used up to so many times the usual steps.
        validations: in a run.
        validation_share: of the time at most.
        margin: of time and memory that stays free.
    """

    smallest_crop: int = 64
    context: float = 2.5
    smallest_object: float = 16.0
    balance_below: float = 0.2
    weigh_below: float = 0.05
    least_steps: int = 10
    good_steps: int = 300
    long_run: int = 2000
    few_masks: int = 10
    most_times: int = 10
    validations: int = 10
    validation_share: float = 0.2
    margin: float = 0.15


LIMITS = Limits()
