"""Sizes of the published networks, counted on the meta device (no memory, no computation)."""

import pytest
import torch
from torch import nn

from halfmask.models.decoders.deeplabv3plus import DeepLabV3Plus
from halfmask.models.decoders.dpt import DPT
from halfmask.models.decoders.psp import PSP
from halfmask.models.decoders.segformer import SegFormer
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.mit import MiT
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.encoders.xception import Xception


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def millions(*modules: nn.Module) -> float:
    return count(*modules) / 1e6


@pytest.mark.parametrize(
    ("size", "parameters", "tensors"),
    [
        ("b0", 3.32, 176),
        ("b1", 13.15, 176),
        ("b2", 24.20, 332),
        ("b3", 44.07, 572),
        ("b4", 60.84, 832),
        ("b5", 81.44, 1052),
    ],
)
def test_mit(size, parameters, tensors):
    with torch.device("meta"):
        encoder = MiT(size=size)
    assert millions(encoder) == pytest.approx(parameters, abs=0.005)
    assert len(encoder.state_dict()) == tensors


@pytest.mark.parametrize(
    ("size", "encoder_total", "total", "dim", "features"),
    [
        ("small", 22.06, 24.80, 384, 64),
        ("base", 86.58, 97.53, 768, 128),
        ("large", 304.37, 335.58, 1024, 256),
        ("giant", 1136.5, 1258.7, 1536, 384),
    ],
)
def test_dinov2_with_dpt(size, encoder_total, total, dim, features):
    with torch.device("meta"):
        encoder = DINOv2(size=size)
        decoder = DPT(encoder.channels, encoder.strides)
        classifier = decoder.make_classifier(21)
    # The published networks hold two things that never get a gradient, and ours does not.
    mask_token, unused_unit = dim, 2 * (9 * features**2 + features)
    precision = 0.05 if size == "giant" else 0.005
    assert (count(encoder) + mask_token) / 1e6 == pytest.approx(encoder_total, abs=precision)
    published = count(encoder, decoder, classifier) + mask_token + unused_unit
    assert published / 1e6 == pytest.approx(total, abs=precision)


@pytest.mark.parametrize(
    ("size", "dim", "heads", "depth", "taps"),
    [
        ("small", 384, 6, 12, [2, 5, 8, 11]),
        ("base", 768, 12, 12, [2, 5, 8, 11]),
        ("large", 1024, 16, 24, [4, 11, 17, 23]),
        ("giant", 1536, 24, 40, [9, 19, 29, 39]),
    ],
)
def test_dinov2_gives_the_normalized_outputs_of_the_published_blocks(size, dim, heads, depth, taps):
    with torch.device("meta"):
        encoder = DINOv2(size=size)
        image = torch.empty(1, 3, 14, 28)
    outputs, normalized = [], []
    for block in encoder.net.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    encoder.net.norm.register_forward_pre_hook(lambda norm, inputs: normalized.append(inputs[0]))
    features = encoder(image)
    assert [x.shape for x in features] == [(1, dim, 1, 2)] * 4
    assert len(outputs) == depth
    assert [number for number, x in enumerate(outputs) if any(x is y for y in normalized)] == taps
    assert {block.attn.num_heads for block in encoder.net.blocks} == {heads}


@pytest.mark.parametrize(
    ("dim", "features", "projections"),
    [
        (384, 64, [48, 96, 192, 384]),
        (768, 128, [96, 192, 384, 768]),
        (1024, 256, [256, 512, 1024, 1024]),
        (1536, 384, [1536, 1536, 1536, 1536]),
    ],
)
def test_dpt_takes_the_published_widths_of_each_token_width(dim, features, projections):
    with torch.device("meta"):
        decoder = DPT((dim,) * 4, (14,) * 4)
    assert [project.out_channels for project in decoder.projects] == projections
    assert [(conv.in_channels, conv.out_channels) for conv in decoder.to_common] == [(c, features) for c in projections]
    assert decoder.embedding == features


@pytest.mark.parametrize(
    ("encoder_class", "params", "classes", "encoder_total", "decoder_total", "total"),
    [
        (MiT, {"size": "b5"}, 21, 81.4, 17.7, 99.2),
        (MiT, {"size": "b5"}, 150, 81.4, 17.8, 99.2),
        (ResNet, {"depth": 152, "output_stride": 32}, 21, 58.3, 20.3, 78.5),
        (ResNet, {"depth": 152, "output_stride": 32}, 150, 58.3, 20.3, 78.6),
    ],
)
def test_dpt_on_the_pyramids_of_unimatch_v2(encoder_class, params, classes, encoder_total, decoder_total, total):
    with torch.device("meta"):
        encoder = encoder_class(**params)
        decoder = DPT(encoder.channels, encoder.strides)
        classifier = decoder.make_classifier(classes)
    unused_unit = 2 * (9 * 256**2 + 256)
    assert millions(encoder) == pytest.approx(encoder_total, abs=0.05)
    assert (count(decoder, classifier) + unused_unit) / 1e6 == pytest.approx(decoder_total, abs=0.05)
    assert (count(encoder, decoder, classifier) + unused_unit) / 1e6 == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(("depth", "parameters"), [(50, 40.48), (101, 59.47)])
def test_deeplab_on_a_deep_stem_resnet(depth, parameters):
    with torch.device("meta"):
        encoder = ResNet(depth=depth)
        decoder = DeepLabV3Plus(encoder.channels, encoder.strides)
        classifier = decoder.make_classifier(21)
    assert millions(encoder, decoder, classifier) == pytest.approx(parameters, abs=0.005)


def test_deeplab_on_xception():
    with torch.device("meta"):
        encoder = Xception()
        decoder = DeepLabV3Plus(encoder.channels, encoder.strides)
        classifier = decoder.make_classifier(21)
    assert count(encoder, decoder, classifier) == 54_711_461
    assert millions(encoder, decoder, classifier) == pytest.approx(54.71, abs=0.005)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)
    assert len([module for module in convolutions if module.groups == 1]) == 2 + 60 + 4 + 3  # pointwise, skips, last


def test_resnet50_with_psp_as_in_cct():
    with torch.device("meta"):
        encoder = ResNet(depth=50, output_stride=8)
        decoder = PSP(encoder.channels, encoder.strides)
    assert count(encoder) == 23_631_808
    assert count(decoder) == 23_073_792
    assert encoder.strides == (4, 8, 8, 8)
    assert decoder.embedding == 512


def test_resnet50_with_the_psp_of_unimatch_v1():
    with torch.device("meta"):
        encoder = ResNet(depth=50, output_stride=8)
        decoder = PSP(encoder.channels, encoder.strides, upscale=1, dropout=0.1, align_branches=True)
        classifier = decoder.make_classifier(2)
    assert millions(encoder, decoder, classifier) == pytest.approx(46.7, abs=0.05)


def test_segformer_head():
    with torch.device("meta"):
        decoder = SegFormer((64, 128, 320, 512), (4, 8, 16, 32))
        classifier = decoder.make_classifier(21)
    assert millions(decoder, classifier) == pytest.approx(3.17, abs=0.005)
    assert SegFormer((32, 64, 160, 256), (4, 8, 16, 32)).embedding == 256
