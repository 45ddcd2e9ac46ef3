"""CAM: a classifier of image-level labels whose class activation maps become pseudo-masks for another method.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv:1512.04150, with the settings by
which Ouali, Hudelot, Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
arXiv:2003.09005, section 3.3 (and its published code) label images of which only the tags are known:

    s_k   = mean over valid cells of w_k f(x)                     w: linear, without bias; f: encoder
    L     = mean over images and foreground classes of BCE(sigmoid s_k, 1[k is among the tags])
    then  `halfmask.teaching.activation_maps`: maps over scales and mirrored images, thresholds 0.30 and 0.05

Tags of labeled images are read off the crop of their mask. `with_pseudo_masks` makes this the first stage of a method.

Deviations:
  * Padding does not count in the mean.
  * No CRF by default (`crf`), and an exact one on a coarse grid where it is asked for (`halfmask.teaching.dense_crf`).
  * Published training freezes batch norm and the first stages of a pretrained ResNet (`frozen`); off by default: a
    network from random weights has to learn them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from halfmask.batch import Batch, Progress, Samples
from halfmask.errors import RecipeError
from halfmask.method import Method, ModelBuilder, Stage, StageContext, StepOutput
from halfmask.models.model import Model
from halfmask.task import Task
from halfmask.teaching.activation_maps import activation_maps, pseudo_mask
from halfmask.teaching.dense_crf import refine_labels

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe

Scale = Annotated[float, Field(gt=0)]

# The published training of the classifier; where other networks need other values: data.weak.stage.
PUBLISHED: dict[str, Any] = {
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "optim.decoder_lr_scale": 10.0,
    "optim.weight_decay": 1e-4,
    "optim.momentum": 0.0,
    "optim.schedule": "poly",
    "optim.power": 0.9,
    "optim.warmup_steps": 0,
    "optim.reference_batch": None,
    "run.epochs": 5,
    "run.steps": None,
}


class Cam(Method):
    """Multi-label classification by global average pooling.

    Args:
        background: class that tags say nothing about; `null`: every class is a thing to be found.
        scales: of the image, summed in its maps.
        flip: also of the mirrored image.
        high: background score above which a class must be to be labeled.
        low: background score below which all classes must be for background.
        crf: refine the labels by the image's colors; takes about a second per image on a CPU.
        frozen: leave batch norm, stem and first two stages of a ResNet as they are.
    """

    status = "implemented"
    weak_labels: ClassVar[frozenset[str]] = frozenset({"tags"})
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        background: Annotated[int, Field(ge=0)] | None = 0,
        scales: Annotated[Sequence[Scale], Field(min_length=1)] = (1.0, 0.5, 1.5, 2.0),
        flip: bool = True,
        high: Annotated[float, Field(ge=0, le=1)] = 0.30,
        low: Annotated[float, Field(ge=0, le=1)] = 0.05,
        crf: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__(task)
        if background is not None and background >= task.n_classes:
            raise RecipeError(f"method.background={background} is no class: there are {task.n_classes}.", "H303")
        if low > high:
            raise RecipeError(f"method.low={low} is above method.high={high}: nothing would stay unknown. Swap them.")
        self.student = build(decoder={"name": "last"})
        self.scales, self.flip, self.high, self.low, self.crf = scales, flip, high, low, crf
        self.background, self.frozen = background, frozen
        named = torch.ones(task.n_classes, dtype=torch.bool)
        if background is not None:
            named[background] = False
            # Its logit is 0 and stays there: what no class claims is background.
            nn.init.zeros_(self.student.classifier.weight[background])  # type: ignore[index]
        self.register_buffer("named", named, persistent=False)
        self.named: Tensor
        if frozen:
            self._freeze()

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        streams = [(batch.labeled, self._shown(batch.labeled.labels))]
        unlabeled = batch.draw(0)
        if unlabeled.tags is not None:
            streams.append((unlabeled, unlabeled.tags))
        tags = torch.cat([shown for _, shown in streams])  # (B, K)
        scores = self._image_scores(streams)
        known = tags.any(1, keepdim=True) & self.named  # nothing at all is named: nothing is known
        each = F.binary_cross_entropy_with_logits(scores, tags.to(scores), reduction="none")
        loss = (each * known).sum() / known.sum().clamp_min(1)
        hits = ((scores > 0) == tags) & known
        return StepOutput(loss, {"loss_tags": loss, "tags/accuracy": hits.sum() / known.sum().clamp_min(1)})

    def train(self, mode: bool = True) -> "Cam":
        """Keep frozen statistics as they are."""
        super().train(mode)
        if getattr(self, "frozen", False):
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @torch.no_grad()
    def mask(self, model: Model, image: Float[Tensor, "C H W"], tags: Bool[Tensor, " K"]) -> Int[Tensor, "H W"]:
        """Return the pseudo-mask of an image; `model` is the trained predictor, in evaluation mode."""

        def scores(scaled: Tensor) -> Tensor:
            return model.classifier(model.embed(model.encode(scaled)))  # type: ignore[no-any-return]

        maps = activation_maps(scores, image, scales=self.scales, flip=self.flip, multiple=model.size_multiple)
        return pseudo_mask(
            maps,
            tags,
            high=self.high,
            low=self.low,
            background=self.background,
            ignore_index=self.task.ignore_index,
            refine=partial(refine_labels, image=image) if self.crf else None,
        )

    def _image_scores(self, streams: list[tuple[Samples, Tensor]]) -> Float[Tensor, "B K"]:
        image = torch.cat([samples.image for samples, _ in streams])
        valid = torch.cat([samples.valid for samples, _ in streams])
        cells = self.student.classifier(self.student.embed(self.student.encode(image)))  # (B, K, h, w)
        counted = F.interpolate(valid[:, None].to(cells), size=cells.shape[-2:], mode="nearest")
        return (cells * counted).sum((-2, -1)) / counted.sum((-2, -1)).clamp_min(1)  # type: ignore[no-any-return]

    def _shown(self, target: Int[Tensor, "B H W"]) -> Bool[Tensor, "B K"]:
        classes = torch.arange(self.task.n_classes, device=target.device)
        return (target.flatten(1)[:, None] == classes[:, None]).any(-1)

    def _freeze(self) -> None:
        net = getattr(self.student.encoder, "net", None)
        stages = [getattr(net, name, None) for name in ("conv1", "bn1", "layer1", "layer2")]
        if not all(isinstance(stage, nn.Module) for stage in stages):
            raise RecipeError(
                "method.frozen=true holds the first stages of a ResNet, but the encoder is another one. Use "
                "method.frozen=false, or model.encoder.name=resnet."
            )
        norms = [part for part in self.student.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for module in (*stages, *norms):
            module.requires_grad_(False)  # type: ignore[union-attr]


def with_pseudo_masks(recipe: "Recipe", stage: str) -> list[Stage]:
    """Return the stages of a method that learns from pseudo-masks: with tags alone, CAM makes the masks first.

    Args:
        recipe: of the run.
        stage: name of the method's own stage.
    """
    weak = recipe.data.weak
    if weak is None or weak.tags is None or weak.masks is not None:
        return [Stage("train")]
    # Validated once, at the end: the last weights label the images.
    changed = {**PUBLISHED, "method": {"name": "cam"}, "model.bottleneck": None, "run.eval_every": 10**9}
    changed |= {"eval.mode": "whole", "expected": None, "data.balance": "none", "optim.class_weights": "none"}
    return [
        Stage("cam", {**changed, **_flat(weak.stage)}, after=_label),
        Stage(stage, lambda made: {"data.weak.masks": made["pseudo_masks"]}),
    ]


def _label(stage: StageContext) -> dict[str, Path]:
    """Label the tagged images by the trained classifier."""
    method, model = stage.load(), stage.predictor()
    assert isinstance(method, Cam)
    assert isinstance(model, Model)

    def label(id: str, image: Tensor) -> Tensor:
        return method.mask(model, image, stage.tags[id])

    return {"pseudo_masks": stage.write_masks("pseudo_masks", stage.split.unlabeled, label)}


def _flat(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Keep `method.name` out of reach: the stage is CAM."""
    if odd := [key for key in stage if key in {"method", "method.name"} or key.startswith("data.weak")]:
        raise RecipeError(f"data.weak.stage cannot change {', '.join(odd)}: the stage learns the tags by method cam.")
    return dict(stage)
