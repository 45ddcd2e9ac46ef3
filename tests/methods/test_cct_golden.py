"""Three training steps of CCT's published code in four configurations, from recorded weights and draws.

Everything runs in float64, as recorded: losses and weights at 1e-10. Evaluation outputs were stored as float32 (1e-6).
"""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Batch, Progress, Samples
from halfmask.methods.cct import CCT, PUBLISHED
from halfmask.models.decoders.psp import PSP
from halfmask.models.encoders._encoder import Encoder
from halfmask.models.model import Segmenter
from halfmask.recipe.read import OptimRecipe
from halfmask.run.loop.optim import make_optimizers, rate_factor, set_rates
from halfmask.task import Task
from halfmask.views.components import Boxes
from halfmask.views.feature_noise import cut_mask
from halfmask.views.vat import Adversarial

from .official_names import part

CLASSES = 5
TASK = Task("segmentation", tuple("abcde"), foreground=(False, True, True, True, True))
KINDS = dict(
    zip(("vat", "drop", "cutout", "context", "object", "fdrop", "fnoise"), PUBLISHED, strict=True)
)  # recorded names, in the order of ours
ERASE = 0.4


class ThreeConvs(Encoder):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.strides = (widths[-1],), (8,)
        self.net = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
                for i, o in zip((3, *widths), widths, strict=False)
            )
        )

    def forward(self, image):
        return [self.net(image)]


def classifier_key(key: str) -> str:
    key = key.replace("upsample.0.", "project.")
    for stage in (1, 2, 3):
        key = key.replace(f"upsample.{stage}.conv.", f"stages.{stage - 1}.")
    return key


def model_key(key: str) -> str:
    if key.startswith("main_decoder."):
        return f"classifier.{classifier_key(key.removeprefix('main_decoder.'))}"
    if key.startswith("encoder.base."):
        return key.replace("encoder.base.", "encoder.net.")
    key = key.replace("encoder.psp.bottleneck.", "decoder.bottleneck.")
    for stage in range(4):
        for old, new in ((1, 0), (2, 1)):
            key = key.replace(f"encoder.psp.stages.{stage}.{old}.", f"decoder.branches.{stage}.{new}.")
    return key


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights of the shipped network and of each auxiliary decoder, under our names."""
    main = {model_key(key): value for key, value in state.items() if not key.startswith("aux_")}
    heads: dict[int, dict[str, Tensor]] = {}
    for key, value in part(state, "aux_decoders.").items():
        number, _, rest = key.partition(".")
        heads.setdefault(int(number), {})[classifier_key(rest)] = value
    return main, [heads[number] for number in range(len(heads))]


class Recorded:
    """A perturbation that gives what was recorded, in place of a draw."""

    def __init__(self, real: Any, draws: list[Tensor]) -> None:
        self.real, self.draws = real, torch.stack(draws)

    def sample(self, z, guide, count, generator=None):
        assert count == len(self.draws)
        return self.draws

    def factor(self, z, draws):
        return self.real.factor(z, draws)


class RecordedStart:
    def __init__(self, settings: Adversarial, starts: list[Tensor]) -> None:
        self.settings, self.starts = settings, iter(starts)

    def sample(self, z, head, generator=None):
        return self.settings.offset(z, head, next(self.starts))


def recorded_cut(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep-mask (B, 1, h, w) of the recorded boxes and offsets of used contours."""
    rows = [[row for row in table.tolist() if row[0] == image and row[6]] for image in range(2)]
    most = max(1, *map(len, rows))
    corners, offset = torch.zeros(2, most, 4, dtype=torch.long), torch.zeros(1, 2, most, 2, dtype=torch.long)
    used = torch.zeros(2, most, dtype=torch.bool)
    for image, own in enumerate(rows):
        for n, row in enumerate(own):
            corners[image, n] = torch.tensor(row[2:6])
            offset[0, image, n] = torch.tensor(row[7:9])
            used[image, n] = True
    return cut_mask(Boxes(corners, used, (64, 64)), offset, ERASE, size)[0, :, None]


def feed_draws(method: CCT, draws: dict[str, Tensor], step: dict[str, Any], real: dict[str, Any]) -> None:
    by_kind: dict[str, list[Tensor]] = {name: [] for name in PUBLISHED}
    for number, aux in enumerate(step["aux"]):
        own, name = part(draws, f"aux{number}/"), KINDS[aux["kind"]]
        if name == "i_vat":
            by_kind[name].append(own["rand"])
        elif name == "dropout":
            by_kind[name].append(own["dropout2d_mask"])
        elif name == "g_cutout":
            assert (own["cut_table"][:, 6] == 1).sum() == aux["n_boxes_used"]
            by_kind[name].append(recorded_cut(own["cut_table"], (8, 8)))
        elif name == "f_drop":
            by_kind[name].append(torch.tensor(aux["factor"], dtype=torch.float64))
        elif name == "f_noise":
            by_kind[name].append(own["uniform_noise"][None])
    for name, given in by_kind.items():
        if given and name == "i_vat":
            method.vat = RecordedStart(real["i_vat"], given)
        elif given:
            method.perturbations[name] = Recorded(real[name], given)


def make_method(config: dict[str, Any], state: dict[str, Tensor], group: Any) -> CCT:
    widths = tuple(state[f"encoder.base.{stage}.0.weight"].shape[0] for stage in range(3))

    class Build:
        crop = 64

        def __call__(self, **overrides):
            encoder = ThreeConvs(widths)
            decoder = PSP(encoder.channels, encoder.strides)
            return Segmenter(encoder, decoder, CLASSES, mean=(0.0,) * 3, std=(1.0,) * 3)

    counts = {KINDS[kind]: config["aux_kinds"].count(kind) for kind in KINDS}
    method = CCT(
        TASK,
        Build(),
        heads=counts,
        strength={"xi": config["xi"], "eps": config["eps"], "erase": config["erase"]},
        unlabeled_weight=float(config["unsupervised_w"]),
        ramp_up=config["rampup_epochs"] / config["epochs"],
        consistency={"MSE": "mse", "KL": "kl", "JS": "js_official"}[config["un_loss"]],
        threshold=config["confidence_th"] if config["confidence_masking"] else None,
        term_weights={"weak": config["weakly_loss_w"]},
        loss={"CE": "ce", "ABCE": "ab_ce"}[config["sup_loss"]],
        vat_direction="finite",
        head_group=group,
    ).double()
    main, heads = split_state(state)
    method.student.load_state_dict({**main, "mean": method.student.mean, "std": method.student.std})
    for number, head in enumerate(heads):
        method.heads.load_head(number, head)
    return method.train()


def batch_of(data: dict[str, Tensor], weak: bool) -> Batch:
    def samples(stream: str, labels: bool) -> Samples:
        image = data[f"x_{stream}"].double()
        valid = torch.ones(len(image), *image.shape[-2:], dtype=torch.bool)
        return Samples(image, valid, torch.arange(2), data[f"y_{stream}"].long() if labels else None)

    return Batch(samples("l", True), samples("u", weak))


@pytest.mark.parametrize("group", ["auto", 0, 4])
@pytest.mark.parametrize("name", ["no_vat", "full", "weak_conf_kl", "abce_js"])
def test_cct_repeats_the_published_run(golden, shared, name, group):
    tensors, inputs = golden(f"cct/train3_{name}"), golden("cct/train3_inputs")
    config = json.loads((shared / "golden" / "cct" / f"train3_{name}.json").read_text())
    method = make_method(config, part(tensors, "init/"), group)
    real = {"i_vat": method.vat, **method.perturbations}
    optim = OptimRecipe(
        name="sgd",
        lr=config["backbone_lr"],
        decoder_lr_scale=config["lr"] / config["backbone_lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    optimizer = make_optimizers(method, optim, optim.lr)
    total = config["epochs"] * config["iters_per_epoch"]
    for number, expected in enumerate(config["steps"]):
        feed_draws(method, part(tensors, f"step{number}/"), expected, real)
        set_rates(optimizer, rate_factor(number, total, optim))
        assert [g["lr"] for g in optimizer["main"].param_groups] == pytest.approx(expected["lr"][::-1], rel=1e-12)
        batch = batch_of(part(inputs, f"step{number}/"), config["use_weak_labels"])
        if number == 0:
            check_predictions(method, batch, part(tensors, "step0/"))
        (update,) = method.updates(batch, Progress(number, total, config["iters_per_epoch"]))
        loss, logs = update.output
        optimizer["main"].zero_grad()
        loss.backward()
        check_losses(loss, logs, expected, config)
        check_gradient_norms(method, expected)
        if number == 0 and name in ("no_vat", "full"):
            check_gradients(method, part(tensors, "step0/grad/"))
        optimizer["main"].step()
    check_final(method, part(tensors, "final/"))
    with torch.no_grad():
        logits = method.eval().student(inputs["step2/x_u"].double())
    assert_close(logits.float(), tensors["eval_out_last_x_u"], rtol=1e-5, atol=1e-6)


def check_losses(loss: Tensor, logs: dict[str, Tensor], expected: dict[str, Any], config: dict[str, Any]) -> None:
    weight = expected["weight_u"]
    assert loss.item() == pytest.approx(expected["total"], rel=1e-10)
    assert logs["loss_sup"].item() == pytest.approx(expected["loss_sup"], rel=1e-10)
    assert logs["loss_unsup"].item() * weight == pytest.approx(expected["loss_unsup"], rel=1e-10)
    if config["use_weak_labels"]:
        scale = config["weakly_loss_w"] * weight / config["unsupervised_w"]
        assert logs["loss_weak"].item() * scale == pytest.approx(expected["loss_weakly"], rel=1e-10)


def check_predictions(method: CCT, batch: Batch, expected: dict[str, Tensor]) -> None:
    """Logits of the main decoder on both streams, stored as float32; statistics of batch norm stay as they were."""
    network = copy.deepcopy(method.student)
    with torch.no_grad():
        for name, samples in (("sup", batch.labeled), ("unsup", batch.draw(0))):
            assert_close(network(samples.image).float(), expected[f"{name}_pred"], rtol=1e-5, atol=1e-6)


def check_gradient_norms(method: CCT, expected: dict[str, Any]) -> None:
    parameters = dict(method.student.named_parameters())
    for key, name in (("encoder.net.0.0.weight", "encoder_base0"), ("classifier.project.weight", "main0")):
        norm = parameters[key].grad.norm().item()
        assert norm == pytest.approx(expected[f"grad_norm_{name}"], rel=1e-10), key


def check_gradients(method: CCT, expected: dict[str, Tensor]) -> None:
    main, heads = split_state(expected)
    own = dict(method.student.named_parameters())
    assert main.keys() == own.keys()
    for key, value in main.items():
        assert_close(own[key].grad, value, rtol=1e-10, atol=1e-14, msg=key)
    shapes = {key: value.shape for key, value in heads[0].items()}
    for key, shape in shapes.items():
        stacked = method.heads.weights[key.replace(".", "/")].grad.view(len(heads), *shape)
        assert_close(stacked, torch.stack([head[key] for head in heads]), rtol=1e-10, atol=1e-14, msg=key)


def check_final(method: CCT, expected: dict[str, Tensor]) -> None:
    main, heads = split_state(expected)
    own = method.student.state_dict()
    assert main.keys() == own.keys() - {"mean", "std"}
    for key, value in main.items():
        assert_close(own[key], value, rtol=1e-10, atol=1e-12, msg=key)
    for number, head in enumerate(heads):
        for key, value in method.heads.head_state(number).items():
            assert_close(value, head[key], rtol=1e-10, atol=1e-12, msg=f"{number} {key}")


def test_rates_follow_the_published_table(shared):
    table = json.loads((shared / "golden" / "cct" / "poly_lr.json").read_text())
    encoder, decoder = table["base_lrs"][1], table["base_lrs"][0]
    optim = OptimRecipe(name="sgd", lr=encoder, decoder_lr_scale=decoder / encoder, power=table["power"])
    total = table["num_epochs"] * table["iters_per_epoch"]
    for epoch, iteration, *rates in table["lr_used_at_each_step"]:
        factor = rate_factor(epoch * table["iters_per_epoch"] + iteration, total, optim)
        assert [decoder * factor, encoder * factor] == pytest.approx(rates, rel=1e-12)
    assert rate_factor(total, total, optim) == 0


def test_scores_follow_the_published_evaluation(golden, shared):
    from halfmask.infer.metrics import ConfusionMatrix

    tensors = golden("cct/metrics")
    table = json.loads((shared / "golden" / "cct" / "metrics.json").read_text())
    matrix = ConfusionMatrix(table["num_classes"], table["ignore_index"])
    for number, expected in enumerate(table["batches"]):
        one = ConfusionMatrix(table["num_classes"], table["ignore_index"])
        prediction = tensors[f"b{number}/logits"].argmax(1)
        one.update(prediction, tensors[f"b{number}/target"])
        inter = one.counts[:-1].diagonal()
        assert inter.tolist() == expected["inter"]
        assert (one.counts.sum(0) + one.counts[:-1].sum(1) - inter).tolist() == expected["union"]
        assert (inter.sum().item(), one.counts.sum().item()) == (expected["correct"], expected["labeled"])
        matrix.merge(one)
    names = tuple("abcdef")
    zero, skip = matrix.scores(names, absent="zero"), matrix.scores(names, absent="skip")
    assert [0.0 if math.isnan(iou) else iou for iou in zero.iou] == pytest.approx(table["class_iou"], abs=1e-12)
    assert zero.accuracy == pytest.approx(table["pixel_acc"], abs=1e-12)
    assert zero.miou == pytest.approx(table["miou_official"], abs=1e-12)
    assert skip.miou == pytest.approx(table["miou_over_present"], abs=1e-12)
