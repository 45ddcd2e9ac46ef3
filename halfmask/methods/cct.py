"""CCT: auxiliary decoders must agree with the main one although their features are perturbed.

Ouali, Hudelot, Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
arXiv:2003.09005. With z = encoder(x_u), g the main decoder, g_k the auxiliary ones, p_k their perturbations:

    t    = softmax g(z)                                            target, no gradient, before any resizing
    L_u  = 1/K sum_k dist(softmax g_k(p_k(z)), t)                  dist: mean over pixels and classes
    L_w  = 1/K sum_k CE(g_k(p_k(z)), y_w)                          only where unlabeled samples bring pseudo-labels y_w
    L    = CE(g(x_l), y) + w L_u + w_w L_w,   w = 30 r,  w_w = 0.4 r,  r = exp(-5 (1 - step / ramp_up)^2), then 1

Perturbations (`halfmask.views.feature_noise`, `halfmask.views.vat`), with the published number of decoders: I-VAT 2,
DropOut 6, G-Cutout 6, Con-Msk 2, Obj-Msk 2, F-Drop 6, F-Noise 6. "Encoder" is everything before the classifier, and
"decoder" the classifier, so that every network of ours can be trained; only the main decoder is evaluated and shipped.

The labeled batch passes first, the unlabeled one after it: with batch normalization each has its own statistics.

Deviations, where the paper and its published code differ or the code has a defect:
  * I-VAT takes the exact direction; the published finite difference is rounding noise in float32 (`vat_direction`).
  * G-Cutout takes objects by area at the cells of the embedding; the code takes outlines with more than 50 vertices
    (`cutout_boxes`).
  * Padded pixels do not count in L_u; in the code they do (`ignore_padding: false`).
  * The pair-wise term (off) reaches the optimizer; in the code it changes the logged number only.
  * F-Drop's gamma is U(0.7, 0.9) as in the code; the paper has U(0.6, 0.9) (`strength.drop_low`).
  * "Foreground" is what the dataset says (`Task.foreground`); the code takes every class above 0.
  * Ramps count steps of this run; the code rounds the ramp down to whole epochs.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.errors import RecipeError, nearest
from halfmask.losses.auxiliary_heads import AuxiliaryHeads, Perturbed
from halfmask.losses.consistency import Distance, Objective, pixel_weight
from halfmask.losses.cross_entropy import bootstrapped_cross_entropy, cross_entropy
from halfmask.method import Method, ModelBuilder, Stage, StepOutput
from halfmask.methods.cam import with_pseudo_masks
from halfmask.models.model import Logits
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import pseudo_label, pseudo_logs
from halfmask.teaching.ramps import RampName, ramp
from halfmask.views.components import BoxRule
from halfmask.views.feature_noise import (
    ChannelDrop,
    FeatureDrop,
    FeatureNoise,
    Guide,
    GuidedCutout,
    KeepContext,
    KeepObjects,
    Perturbation,
    make_guide,
    nearest_index,
)
from halfmask.views.vat import Adversarial, Direction

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe

# Decoders of each kind, in the order in which they are stored.
PUBLISHED = {"i_vat": 2, "dropout": 6, "g_cutout": 6, "con_msk": 2, "obj_msk": 2, "f_drop": 6, "f_noise": 6}
GUIDED = ("g_cutout", "con_msk", "obj_msk")
STRENGTH = {
    "noise": 0.3,
    "drop_low": 0.7,
    "drop_high": 0.9,
    "dropout": 0.5,
    "erase": 0.4,
    "min_area": 1 / 400,
    "eps": 2.0,
    "eps_share": 0.0,
    "xi": 0.1,
}
TERMS = {"weak": 0.4, "pairwise": 0.0}
_CELL = 8  # image pixels; side of the cells in which G-Cutout looks for objects
_PAIRED = 8  # decoders in the pair-wise term
_HOST = "cutout_boxes={} finds objects on the host, once per step; `cells` does not."


def _check_keys(given: Mapping[str, int | float], table: Collection[str]) -> None:
    for key, value in given.items():
        if key not in table:
            raise ValueError(f"{key} is not one of {', '.join(table)}.{nearest(key, table)}")
        if value < 0:
            raise ValueError(f"{key}={value} must not be negative")


def _checked_heads(given: str | dict[str, int]) -> str | dict[str, int]:
    if isinstance(given, dict):
        _check_keys(given, PUBLISHED)
        if not any(given.values()):
            raise ValueError("at least one auxiliary decoder is needed")
    return given


def _checked_strength(given: dict[str, float] | None) -> dict[str, float] | None:
    _check_keys(given or {}, STRENGTH)
    full = STRENGTH | (given or {})
    if full["dropout"] >= 1 or full["erase"] > 1 or full["drop_low"] > full["drop_high"]:
        raise ValueError("dropout must be below 1, erase at most 1, drop_low not above drop_high")
    return given


def _checked_terms(given: dict[str, float] | None) -> dict[str, float] | None:
    _check_keys(given or {}, TERMS)
    return given


class CCT(Method):
    """Cross-consistency between a main and many perturbed auxiliary decoders.

    Args:
        heads: auxiliary decoders: `published` (30), `lite` (one of each kind, 7), or a number for each of `i_vat`,
            `dropout`, `g_cutout`, `con_msk`, `obj_msk`, `f_drop`, `f_noise`; kinds left out get none. The weight of a
            kind is its share of the decoders.
        strength: of the perturbations, where it differs: `noise` r, `drop_low` and `drop_high` of gamma, `dropout` p,
            `erase` (0.4 cuts 16 % of a box), `min_area` of an object (share of the image), `eps` of I-VAT or
            `eps_share` of the embedding's length in place of it, `xi` of the finite difference.
        unlabeled_weight: w after the ramp; L_u is averaged over classes, so use less with few of them.
        ramp: shape of r.
        ramp_up: part of the run over which the weights rise.
        consistency: dist; `js_official` is the divergence as CCT's code has it.
        threshold: leave out pixels whose target is not more confident (`mse` and `kl`); `null`: all count.
        term_weights: of further terms, where they differ: `weak`, w_w after the ramp, for pseudo-labels of unlabeled
            images (0.4), and `pairwise`, for the variance of eight decoders' predictions (0: left out).
        loss: of the labeled images: `ce`, or `ab_ce`, which leaves out learned pixels, more of them early on: for 500
            labels or fewer.
        vat_direction: `exact`, or the published `finite` difference (with `strength.xi` 1e-6 as published).
        cutout_boxes: how G-Cutout finds objects: `cells` on the device, `components` (needs SciPy) or the published
            `contours` (needs OpenCV) at full resolution on the host.
        ignore_padding: leave the padded part of unlabeled crops out of L_u.
        head_group: decoders computed at once; `auto`: 1 on a CPU, 6 elsewhere; 0: the plain loop, for comparison.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    weak_labels: ClassVar[frozenset[str]] = frozenset({"masks"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        heads: Annotated[Literal["published", "lite"] | dict[str, int], AfterValidator(_checked_heads)] = "published",
        strength: Annotated[dict[str, float] | None, AfterValidator(_checked_strength)] = None,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 30.0,
        ramp: RampName = "sigmoid",
        ramp_up: Annotated[float, Field(ge=0, le=1)] = 0.1,
        consistency: Distance = "mse",
        threshold: Annotated[float, Field(ge=0, le=1)] | None = None,
        term_weights: Annotated[dict[str, float] | None, AfterValidator(_checked_terms)] = None,
        loss: Literal["ce", "ab_ce"] = "ce",
        vat_direction: Direction = "exact",
        cutout_boxes: BoxRule = "cells",
        ignore_padding: bool = True,
        head_group: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(task)
        self.counts = _counts(heads)
        self.student = build()
        self.heads = AuxiliaryHeads(self.student.classifier, sum(self.counts.values()))
        strength = STRENGTH | (strength or {})
        self.perturbations = _perturbations(strength)
        share = strength["eps_share"]
        self.vat = Adversarial(share or strength["eps"], vat_direction, strength["xi"], relative=share > 0)
        self.cutout_boxes, self.min_area = cutout_boxes, strength["min_area"]
        self.host_sync = None if cutout_boxes == "cells" else _HOST.format(cutout_boxes)
        self.register_buffer("foreground", _foreground(task, self.counts), persistent=False)
        self.foreground: Tensor
        terms = TERMS | (term_weights or {})
        self.unlabeled_weight, self.weak_weight = unlabeled_weight, terms["weak"]
        self.pairwise_weight = terms["pairwise"]
        self.ramp, self.ramp_up, self.consistency, self.threshold = ramp, ramp_up, consistency, threshold
        self.loss, self.ignore_padding = loss, ignore_padding
        self.head_group = head_group
        self.labeled_loss = partial(
            cross_entropy if loss == "ce" else bootstrapped_cross_entropy, ignore_index=task.ignore_index
        )

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return parameters that leave out every term of unlabeled images."""
        return {"unlabeled_weight": 0.0, "term_weights": {"weak": 0.0, "pairwise": 0.0}}

    @classmethod
    def plan(cls, recipe: "Recipe") -> list[Stage]:
        """Return one stage; with image-level labels (section 3.3) a first stage makes pseudo-masks of them."""
        return with_pseudo_masks(recipe, "cct")

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        loss_l = self._labeled_loss(self.student(x_l), y_l, batch.class_weights, progress)

        # The main decoder's prediction on unlabeled images: target of all others, and guide of some.
        unlabeled = batch.draw(0)
        with pseudo_pass(self.student):
            z = self.student.embed(self.student.encode(unlabeled.image))  # (B, D, h, w)
        with torch.no_grad():
            logits = self.student.classifier(z)  # (B, K, H', W'), at the decoder's own resolution
            label, confidence = pseudo_label(logits)
            guide = self._guide(label, z, unlabeled.image)
            perturbed = self._perturb(z.detach(), guide)

            valid = _resized(unlabeled.valid, label)
            if not self.ignore_padding:
                valid = torch.ones_like(valid)
            keep = None if self.threshold is None else confidence > self.threshold
            objective = self._objective(logits, valid, keep, unlabeled, progress)

        group = (1 if z.device.type == "cpu" else 6) if self.head_group == "auto" else self.head_group
        pairs = self._pairs(z) if self.pairwise_weight else None
        loss_u, terms = self.heads.loss(z, perturbed, objective, group=group, pairs=pairs)

        logs = pseudo_logs(label, confidence, valid if keep is None else keep, valid, self.task.n_classes)
        logs |= {"loss_sup": loss_l, "loss_unsup": terms.distance}
        if unlabeled.target is not None:
            logs["loss_weak"] = terms.weak
        if self.pairwise_weight:
            logs["loss_pairwise"] = terms.pair
        return StepOutput(loss_l + loss_u, logs)

    def _labeled_loss(self, logits: Logits, target: Tensor, weight: Tensor | None, progress: Progress) -> Tensor:
        if self.loss == "ce":
            return self.labeled_loss(logits, target, weight=weight)
        # eta rises from 1/K towards 0.9.
        chance = 1 / self.task.n_classes
        eta = chance + (0.9 - chance) * ramp("log", progress.step, 0.4 * progress.total_steps)
        return self.labeled_loss(logits, target, weight=weight, threshold=eta)

    def _guide(self, label: Tensor, z: Tensor, image: Tensor) -> Guide | None:
        if not any(self.counts[kind] for kind in GUIDED):
            return None
        cell = max(1, round(_CELL * label.shape[-2] / image.shape[-2]))
        size = (z.shape[-2], z.shape[-1])
        return make_guide(label, self.foreground, size, rule=self.cutout_boxes, cell=cell, min_area=self.min_area)

    def _perturb(self, z: Tensor, guide: Guide | None) -> list[Perturbed]:
        """Draw the perturbations of all decoders, in their order."""
        perturbed = []
        if count := self.counts["i_vat"]:
            offsets = [self.vat.sample(z, self.heads.row_head(number)) for number in range(count)]
            perturbed.append(Perturbed(offset=torch.stack(offsets)))
        for kind, perturbation in self.perturbations.items():
            if count := self.counts[kind]:
                perturbed.append(Perturbed(perturbation.factor(z, perturbation.sample(z, guide, count))))
        return perturbed

    def _objective(
        self, logits: Tensor, valid: Tensor, keep: Tensor | None, unlabeled: Samples, progress: Progress
    ) -> Objective:
        rise = ramp(self.ramp, progress.step, self.ramp_up * progress.total_steps)
        target = self.heads.rows(logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)
        pixels = self.heads.rows(pixel_weight(self.consistency, self.task.n_classes, valid, keep, target.dtype))
        objective = Objective(self.consistency, target, pixels, unlabeled_weight=self.unlabeled_weight * rise)
        if unlabeled.target is not None:
            weak = self.heads.rows(_resized(unlabeled.target, valid))
            known = weak != self.task.ignore_index
            objective = objective._replace(
                label=weak.masked_fill(~known, 0),
                labeled_pixels=known.to(target) / known.sum().clamp_min(1),
                weak_weight=self.weak_weight * rise,
            )
        if self.pairwise_weight:
            real = self.heads.rows(valid)
            mean = real.to(target) / real.sum().clamp_min(1)
            objective = objective._replace(pair_pixels=mean, pair_weight=self.pairwise_weight)
        return objective

    def _pairs(self, z: Tensor) -> Tensor:
        chosen = torch.randperm(self.heads.count, device=z.device)[:_PAIRED]
        return z.new_zeros(self.heads.count).index_fill_(0, chosen, 1 / len(chosen))


def _counts(heads: str | dict[str, int]) -> dict[str, int]:
    if isinstance(heads, dict):
        return {kind: heads.get(kind, 0) for kind in PUBLISHED}
    return dict.fromkeys(PUBLISHED, 1) if heads == "lite" else dict(PUBLISHED)


def _perturbations(strength: dict[str, float]) -> dict[str, Perturbation]:
    return {
        "dropout": ChannelDrop(strength["dropout"]),
        "g_cutout": GuidedCutout(strength["erase"]),
        "con_msk": KeepObjects(),
        "obj_msk": KeepContext(),
        "f_drop": FeatureDrop(strength["drop_low"], strength["drop_high"]),
        "f_noise": FeatureNoise(strength["noise"]),
    }


def _foreground(task: Task, counts: dict[str, int]) -> Tensor:
    if task.foreground is None and any(counts[kind] for kind in GUIDED):
        classes = f"{', '.join(task.classes[:8])}{', ...' if task.n_classes > 8 else ''}"
        others = {kind: counts[kind] for kind in counts if kind not in GUIDED and counts[kind]} or {"dropout": 6}
        heads = ", ".join(f"{kind}: {count}" for kind, count in others.items())
        raise RecipeError(
            "CCT's guided perturbations need to know which classes are object-like, and the dataset does not say. Name "
            f"them (classes: {classes}) by `foreground: [...]` in halfmask.yaml or data.dataset.foreground=[...], or "
            f"do without {', '.join(GUIDED)}: method.heads={{{heads}}}."
        )
    return torch.tensor(task.foreground or (True,) * task.n_classes)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Resize by nearest neighbor to the height and width of another map."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    sizes = zip(like.shape[-2:], maps.shape[-2:], strict=True)
    rows, columns = (nearest_index(new, old, maps.device) for new, old in sizes)
    return maps[..., rows, :][..., columns]
