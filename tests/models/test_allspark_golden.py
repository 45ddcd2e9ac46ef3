"""The bottleneck gives the published outputs and gradients, with and without memory, in every form.

The recordings were computed in float64 and stored in float32, hence 1e-6 absolute in float64 (values up to about 10).
In float32 outputs are within 1e-5 and gradients within 1e-4 of the largest one, as their README states.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.importers.allspark import AllSparkCheckpoint as Importer
from halfmask.models import channel_attention
from halfmask.models.bottlenecks.allspark import AllSpark
from halfmask.models.key_rules import rename
from halfmask.teaching.grouping import channel_classes
from halfmask.teaching.memory import enqueue
from tests.oracles.forms import plain_forms

C, SIDE, B = 12, 3, 2
PRECISIONS = [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-5, 1e-4)]  # dtype, of outputs, of gradients
OFFICIAL = {
    f"{path}_{part}": f"attn.{part}_{suffix}.weight"
    for path, suffix in (("self", "u"), ("cross", "l2u"))
    for part in "qkv"
}
OFFICIAL |= {"self_out": "attn.out_u.weight", "cross_out": "attn.out_l2u.weight"}


def ours(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors below `decoder.allspark.` under the names of our bottleneck."""
    made = rename({f"decoder.allspark.{key}": value for key, value in official.items()}, Importer.rules)
    assert not made.unknown
    return {key.removeprefix("bottleneck."): value for key, value in made.state.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def attention_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return ours({OFFICIAL[name]: value for name, value in part(tensors, "weight/").items()})


@pytest.fixture(params=["auto", "plain", "stream", "sdpa"])
def make(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[torch.dtype], AllSpark]]:
    # Chunks of 64 keys, the smallest: several per score matrix even at this size.
    monkeypatch.setitem(channel_attention._CHUNK_BYTES, "cpu", 1)

    def build(dtype: torch.dtype) -> AllSpark:
        impl = "auto" if request.param == "plain" else request.param
        return AllSpark(C, heads=2, dropout=0.0, impl=impl).to(dtype)

    with plain_forms() if request.param == "plain" else nullcontext():
        yield build


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert_close(actual, expected.to(actual.dtype), rtol=0, atol=tolerance)


def _close_gradient(actual: Tensor | None, expected: Tensor, tolerance: float) -> None:
    assert actual is not None
    _close(actual, expected, tolerance * max(1.0, float(expected.abs().max())))


def _remember(tokens: Tensor, logits: Tensor, memory: Tensor, pointer: Tensor) -> None:
    classes = channel_classes(tokens, logits, (SIDE, SIDE))
    enqueue(memory, pointer, tokens.detach().transpose(1, 2), classes)


@pytest.mark.parametrize(("dtype", "tolerance", "of_gradient"), PRECISIONS)
@pytest.mark.parametrize("memory_on", [False, True])
def test_attention_with_gradients(golden, make, memory_on, dtype, tolerance, of_gradient):
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in golden("allspark/attention").items()
    }
    bottleneck = make(dtype).train()
    bottleneck.load_state_dict(attention_weights(tensors), strict=False)
    tokens = tensors["input/emb1"].requires_grad_()
    memory, pointer = tensors["memory/initial"].clone(), tensors["pointer/initial"].clone()

    _remember(tokens[B:], tensors["input/logits1"], memory, pointer)
    keys = memory if memory_on else tokens[B:].transpose(1, 2)
    out = bottleneck.attention(tokens, keys, labeled=B).transpose(1, 2)
    out.backward(tensors["input/upstream_grad"])

    name = "on" if memory_on else "off"
    expected = part(tensors, f"train_memory_{name}/")
    _close(out, expected["out"], tolerance)
    _close_gradient(tokens.grad, expected["grad_emb"], of_gradient)
    gradients = {key: parameter.grad for key, parameter in bottleneck.named_parameters()}
    recorded = {OFFICIAL[name]: value for name, value in part(expected, "grad_").items() if name in OFFICIAL}
    assert len(recorded) == len(OFFICIAL)
    for key, value in ours(recorded).items():
        _close_gradient(gradients[key], value, of_gradient)
    if not memory_on:
        _close(memory, expected["memory"], 1e-7)
        assert pointer.tolist() == expected["pointer"].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [precision[:2] for precision in PRECISIONS])
def test_three_steps_carry_the_memory_on(golden, make, dtype, tolerance):
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in golden("allspark/attention").items()
    }
    bottleneck = make(dtype).train()
    bottleneck.load_state_dict(
        ours({OFFICIAL[name]: value for name, value in part(tensors, "weight/").items()}), strict=False
    )
    memory, pointer = tensors["memory/initial"].clone(), tensors["pointer/initial"].clone()
    for step in (1, 2, 3):
        tokens = tensors[f"input/emb{step}"]
        _remember(tokens[B:], tensors[f"input/logits{step}"], memory, pointer)
        out = bottleneck.attention(tokens, memory, labeled=B).transpose(1, 2)
        _close(out, tensors[f"sequence/step{step}/out"], tolerance)
        _close(memory, tensors[f"sequence/step{step}/memory"], 1e-7)
        assert pointer.tolist() == tensors[f"sequence/step{step}/pointer"].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [precision[:2] for precision in PRECISIONS])
def test_evaluation_pools_the_keys_of_a_batch_or_takes_an_images_own(golden, make, dtype, tolerance):
    tensors = cast(golden("allspark/attention"), dtype)
    bottleneck = make(dtype).eval()
    bottleneck.load_state_dict(
        ours({OFFICIAL[name]: value for name, value in part(tensors, "weight/").items()}), strict=False
    )
    tokens = tensors["input/emb1"][:B]
    # The recorded call saw the batch twice and gave both halves; only the first is used.
    pooled = bottleneck.attention(tokens, tokens.transpose(1, 2), labeled=B).transpose(1, 2)
    _close(pooled, tensors["eval_batch/out"][:B], tolerance)
    alone = bottleneck.attention(tokens, None, labeled=B).transpose(1, 2)
    _close(alone[:1], tensors["eval_single/out"][:1], tolerance)
    assert (alone - pooled).abs().max() > 1e-2
    # What the recording computed on the copy, and threw away: the form of unlabeled images.
    own = bottleneck.attention(tokens, None, labeled=0).transpose(1, 2)
    _close(own, tensors["eval_batch/out"][B:], tolerance)
    _close(own[:1], tensors["eval_single/out"][1:], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_channels_find_the_published_class(golden, step, dtype, tolerance):
    tensors = golden("allspark/attention")
    tokens, logits = tensors[f"input/emb{step}"][B:].to(dtype), tensors[f"input/logits{step}"].to(dtype)
    classes = channel_classes(tokens, logits, (SIDE, SIDE))
    assert classes.tolist() == tensors[f"grouping/channel_class{step}"].tolist()
    resized = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear").flatten(2)
    _close(resized, tensors[f"grouping/resized_logits{step}"], tolerance)
    similarity = torch.nn.functional.normalize(resized, dim=-1) @ torch.nn.functional.normalize(tokens, dim=1)
    _close(similarity, tensors[f"grouping/similarity{step}"], tolerance)


@pytest.mark.parametrize("case", ["exact_fill_and_wrap", "all_channels_one_class"])
def test_single_writes_end_where_published(golden, case):
    tensors = golden("allspark/attention")
    memory, pointer = tensors["memory/initial"].clone(), tensors[f"queue/{case}/pointer_before"].clone()
    channels = tensors[f"queue/{case}/emb"].T.unsqueeze(0)
    enqueue(memory, pointer, channels, tensors[f"queue/{case}/channel_class"].unsqueeze(0))
    assert torch.equal(memory, tensors[f"queue/{case}/memory_after"])
    assert torch.equal(pointer, tensors[f"queue/{case}/pointer_after"])


@pytest.mark.parametrize(("dtype", "tolerance", "of_gradient"), PRECISIONS)
@pytest.mark.parametrize("memory_on", [False, True])
def test_whole_bottleneck_with_gradients(golden, make, memory_on, dtype, tolerance, of_gradient):
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in golden("allspark/bottleneck").items()
    }
    bottleneck = make(dtype).train()
    bottleneck.load_state_dict(ours(part(tensors, "weight/")))
    features = tensors["input/features"].requires_grad_()
    memory, pointer = tensors["weight/attn.kv_queue"].clone(), tensors["weight/attn.queue_ptr"].clone()

    tokens, residual = bottleneck.embed(features)
    _remember(tokens[B:], tensors["input/logits"], memory, pointer)
    keys = memory if memory_on else tokens[B:].transpose(1, 2)
    out = bottleneck.attend(tokens, residual, keys, labeled=B)
    out.backward(tensors["input/upstream_grad"])

    expected = part(tensors, f"train_memory_{'on' if memory_on else 'off'}/")
    _close(out, expected["out"], tolerance)
    _close(memory, expected["memory_after"], 1e-6 if dtype == torch.float64 else 1e-5)
    assert pointer.tolist() == expected["pointer_after"].tolist()
    _close_gradient(features.grad, expected["grad_features"], of_gradient)
    gradients = {key: parameter.grad for key, parameter in bottleneck.named_parameters()}
    recorded = ours(part(expected, "grad/"))
    assert recorded.keys() == (gradients.keys() if memory_on else set())
    for key, value in recorded.items():
        _close_gradient(gradients[key], value, of_gradient)


@pytest.mark.parametrize(("dtype", "tolerance"), [precision[:2] for precision in PRECISIONS])
def test_whole_bottleneck_in_evaluation_takes_any_shape(golden, make, dtype, tolerance):
    tensors = cast(golden("allspark/bottleneck"), dtype)
    bottleneck = make(dtype).eval()
    bottleneck.load_state_dict(ours(part(tensors, "weight/")))
    features = tensors["input/features"][:B]
    tokens, _ = bottleneck.embed(features)
    _close(bottleneck(features, tokens.transpose(1, 2)), tensors["eval/out_batch"], tolerance)
    _close(bottleneck(features)[:1], tensors["eval/out_first_alone"], tolerance)
    _close(bottleneck(tensors["input/features_rect"]), tensors["eval/out_rect"], tolerance)
