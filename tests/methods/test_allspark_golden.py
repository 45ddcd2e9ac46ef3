"""Three training steps of AllSpark from recorded weights, images and memory, in both precisions.

Recorded in float64 with all dropout off, one iteration per epoch, so that the memory is used from the second step on.
The recording's README states what float32 alone changes: losses 2.6e-7, logits 6.4e-6, updates 0.8 % of their norm.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Batch, Progress, Samples
from halfmask.importers.allspark import AllSparkCheckpoint as Importer
from halfmask.methods.allspark import AllSpark
from halfmask.models.bottlenecks.allspark import AllSpark as Bottleneck
from halfmask.models.decoders.segformer import SegFormer
from halfmask.models.encoders.mit import MiT
from halfmask.models.key_rules import rename
from halfmask.models.model import Model, Segmenter
from halfmask.recipe.read import OptimRecipe
from halfmask.run.loop.optim import make_optimizers, rate_factor, set_rates
from halfmask.task import Task

CLASSES, CROP, STEPS = 5, 65, 3
TASK = Task("segmentation", tuple(f"class {number}" for number in range(CLASSES)))
OPTIM = OptimRecipe(
    name="sgd", lr=0.01, decoder_lr_scale=5.0, momentum=0.9, weight_decay=1e-4, schedule="poly", schedule_lag=1
)
TOLERANCES = {  # losses, logits, checksums and norms (relative)
    torch.float64: (1e-12, 1e-6, 1e-6),
    torch.float32: (5e-6, 1e-4, 1e-2),
}


class Build:
    """Gives the recorded network."""

    crop = CROP

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.state, self.dtype = state, dtype

    def __call__(self, **overrides: object) -> Model:
        encoder = MiT(size="b0", drop_path=0.0)
        decoder = SegFormer(encoder.channels, encoder.strides, embedding=48, dropout=0.0)
        bottleneck = Bottleneck(encoder.channels[-1], heads=2, dropout=0.0)
        # The recorded images are already normalized.
        model = Segmenter(encoder, decoder, CLASSES, bottleneck, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        model.load_state_dict({**self.state, "mean": model.mean, "std": model.std})
        return model.to(self.dtype)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors, and the names of the parameters in the order of their checksums."""
    with safe_open(shared / "golden/allspark/end_to_end.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        names = json.loads(file.metadata()["param_names"])
    with safe_open(shared / "golden/allspark/mit_b0.safetensors", "pt") as file:
        for key in file.keys():
            if key.startswith("weight/"):
                tensors[key.replace("weight/", "weight/backbone.")] = file.get_tensor(key)
    return tensors, names


def make_method(tensors: dict[str, Tensor], dtype: torch.dtype) -> AllSpark:
    official = {key.removeprefix("weight/"): value for key, value in tensors.items() if key.startswith("weight/")}
    made = rename(official, Importer.rules)
    assert not made.unknown
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in made.state.items()}
    method = AllSpark(
        TASK, Build(state, dtype), warmup_epochs=1.0, labeled_color=False, ignore_padding=False, memory_sync="rank0"
    )
    method.to(dtype)
    method.memory.slots.copy_(official["decoder.allspark.attn.kv_queue"])
    method.memory.pointer.copy_(official["decoder.allspark.attn.queue_ptr"])
    return method.train()


def make_batch(tensors: dict[str, Tensor], step: int, dtype: torch.dtype) -> Batch:
    labeled, unlabeled = (tensors[f"input/{part}_image{step}"].to(dtype) for part in ("labeled", "unlabeled"))
    valid, index = torch.ones(2, CROP, CROP, dtype=torch.bool), torch.arange(2)
    return Batch(
        Samples(labeled, valid, index, tensors[f"input/mask{step}"].long()),
        Samples(unlabeled, valid, index + 10 * step),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_three_steps_repeat_the_published_run(recorded, dtype):
    tensors, names = recorded
    of_loss, of_logits, of_norm = TOLERANCES[dtype]
    method = make_method(tensors, dtype)
    initial = {key: value.clone() for key, value in method.student.state_dict().items()}
    optimizer = make_optimizers(method, OPTIM, OPTIM.lr)
    log = []
    for step in range(1, STEPS + 1):
        set_rates(optimizer, rate_factor(step - 1, STEPS, OPTIM))
        batch = make_batch(tensors, step, dtype)
        labels = _watch_labels(method, batch)
        (update,) = method.updates(batch, Progress(step - 1, STEPS, 1))
        optimizer["main"].zero_grad()
        update.output.loss.backward()
        optimizer["main"].step()
        method.after_update(Progress(step - 1, STEPS, 1))

        assert torch.equal(labels, tensors[f"step{step}/pseudo_label"].long())
        assert torch.equal(method.memory.pointer, tensors[f"step{step}/pointer"])
        slots = method.memory.slots.double()
        assert_close(
            torch.stack([slots.sum(), slots.norm()]), tensors[f"step{step}/memory_checksum"], rtol=of_logits, atol=1e-3
        )
        losses = [update.output.loss, update.output.logs["loss_sup"], update.output.logs["loss_unsup"]]
        rates = [group["lr"] for group in optimizer["main"].param_groups]
        log.append([*(float(value.detach()) for value in losses), *rates])
    expected = tensors["log/loss_total_labeled_unlabeled_lrbackbone_lrdecoder"]
    log = torch.tensor(log, dtype=torch.float64)
    assert_close(log[:, :3], expected[:, :3], rtol=0, atol=of_loss)
    if dtype == torch.float32:
        assert_close(log[:, :3], tensors["log/same_run_in_float32"][:, :3], rtol=0, atol=of_loss)
    assert_close(log[:, 3:], expected[:, 3:], rtol=1e-12, atol=0)

    _check_final(method, tensors, dtype, of_logits)
    _check_parameters(method.student, initial, tensors, names, of_norm)


def _watch_labels(method: AllSpark, batch: Batch) -> Tensor:
    """Pseudo-labels of the coming step."""
    method.student.eval()
    with torch.no_grad():
        label = method._label(batch.draw(0).image).argmax(1)
    method.student.train()
    return label


def _check_final(method: AllSpark, tensors: dict[str, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    image = tensors["input/eval_image"].to(dtype)
    student = method.student.eval()
    with torch.no_grad():
        pooled, alone = method._label(image), student(image[:1])
        # Evaluation looks at one image at a time, whatever else is in the batch.
        assert_close(student(image)[:1], alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert_close(pooled, tensors["final/eval_logits_batch"].to(dtype), rtol=0, atol=tolerance)
    assert_close(alone, tensors["final/eval_logits_first_alone"].to(dtype), rtol=0, atol=tolerance)
    assert torch.equal(pooled.argmax(1).byte(), tensors["final/eval_prediction_batch"])
    norm = student.decoder.norm
    assert_close(norm.running_mean, tensors["final/bn_running_mean"].to(dtype), rtol=0, atol=tolerance)
    assert_close(norm.running_var, tensors["final/bn_running_var"].to(dtype), rtol=0, atol=tolerance)
    assert torch.equal(method.memory.pointer, tensors["final/pointer"])


def _check_parameters(
    model: Model, initial: dict[str, Tensor], tensors: dict[str, Tensor], names: list[str], tolerance: float
) -> None:
    made = rename(dict.fromkeys(names, torch.empty(0)), Importer.rules)
    ours = {official: name for name, official in made.origin.items()}
    parameters = dict(model.named_parameters())
    assert {ours[name] for name in names} == parameters.keys()
    largest = float(tensors["final/update_l2"].max())
    for place, name in enumerate(names):
        value = parameters[ours[name]].detach().double()
        update = (value - initial[ours[name]].double()).norm()
        # Some have no gradient in exact arithmetic (biases before batch norm): absolute, in parts of the largest.
        assert_close(update, tensors["final/update_l2"][place], rtol=tolerance, atol=tolerance * largest, msg=name)
        assert_close(value.norm(), tensors["final/param_l2"][place], rtol=tolerance / 100, atol=1e-6, msg=name)
        total = tensors["final/param_sum"][place]
        assert_close(value.sum(), total, rtol=0, atol=tolerance * max(1.0, value.numel() ** 0.5), msg=name)
