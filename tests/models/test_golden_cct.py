"""CCT's network: every recorded stage, its convolutions' settings, and how a fresh classifier starts.

Recorded in float32 (1e-4 relative, 1e-5 absolute); the networks run in float64.
"""

import json

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.importers.cct import CCTCheckpoint
from halfmask.models.decoders.psp import PSP, SubPixel
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.key_rules import rename
from halfmask.models.model import Segmenter


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-5)


def thin_network() -> ResNet:
    """Ours, with the recorded widths: stages of 1/16, but the stem as it is."""
    encoder = ResNet(depth=50, width=4, output_stride=8)
    encoder.net = timm.create_model(
        "resnet50", num_classes=0, output_stride=8, stem_type="deep", stem_width=64, channels=(4, 8, 16, 32)
    )
    return encoder


def test_every_stage_of_the_thin_network_is_the_recorded_one(golden):
    tensors = golden("cct/encoder_thin")
    made = rename({f"encoder.{key}": value for key, value in part(tensors, "w/").items()}, CCTCheckpoint.rules)
    assert not made.unknown
    encoder, decoder = thin_network(), PSP((128,), (8,))
    encoder.load_state_dict(part(made.state, "encoder."))
    decoder.load_state_dict(part(made.state, "decoder."))
    network = nn.ModuleList([encoder, decoder]).double()
    image = tensors["in"].double()
    with torch.no_grad():
        features = encoder.eval()(image)
        net = encoder.net
        close(net.maxpool(net.act1(net.bn1(net.conv1(image)))), tensors["base0_eval"])
        for stage, feature in enumerate(features, start=1):
            close(feature, tensors[f"base{stage}_eval"])
        close(decoder.eval().refine(decoder.fuse(features)), tensors["out_eval"])
        # In training mode the 1x1 branch is normalized over two values, which magnifies the recording's own float32
        # rounding; in float32 other processors than the recording's differ by 5e-4.
        network.train()
        trained = decoder.refine(decoder.fuse(encoder(image)))
        assert_close(trained, tensors["out_train"].double(), rtol=0.0, atol=3e-4)


def test_convolutions_have_the_published_strides_and_dilations(shared):
    network = nn.ModuleDict({"encoder": thin_network(), "decoder": PSP((128,), (8,))})
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    checked = 0
    for row in json.loads((shared / "golden" / "cct" / "encoder_thin_convs.json").read_text()):
        made = rename({f"encoder.{row['name']}.weight": torch.zeros(1)}, CCTCheckpoint.rules)
        (name,) = made.state
        conv = convs[name.removesuffix(".weight")]
        settings = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        assert settings == tuple(tuple(row[key]) for key in ("k", "stride", "pad", "dil")), name
        assert (conv.in_channels, conv.out_channels, conv.bias is not None) == (row["cin"], row["cout"], row["bias"])
        checked += 1
    assert checked == len(convs)


@pytest.mark.parametrize("kind", ["init", "rand"])
def test_the_classifier_gives_the_recorded_logits(golden, kind):
    tensors = golden("cct/decoder")
    classifier = SubPixel(12, 6)
    state = {f"main_decoder.{key}": value for key, value in part(tensors, f"{kind}/").items()}
    classifier.load_state_dict(part(rename(state, CCTCheckpoint.rules).state, "classifier."))
    with torch.no_grad():
        classifier.double()
        logits = classifier(tensors["in"].double())
        close(logits, tensors[f"out_{kind}"])
        if kind == "init":
            first = classifier.project(tensors["in"].double())
            close(first, tensors["stage0_init"])
            close(nn.functional.pixel_shuffle(classifier.stages[0](first).relu(), 2), tensors["stage1_init"])
    assert (logits >= 0).all()


def test_a_fresh_classifier_starts_as_published(golden, shared):
    table = json.loads((shared / "golden" / "cct" / "decoder_init_stats.json").read_text())
    classifier = SubPixel(512, 21)
    assert sum(p.numel() for p in classifier.parameters()) == table["n_params_per_decoder_C21_in512"]
    weight = classifier.project.weight
    assert weight.std().item() == pytest.approx(table["stage0_expected_std"], rel=0.03)  # of 10752 draws
    for stage in classifier.stages:
        copies = stage.weight.view(21, 4, 21)
        assert torch.equal(copies, copies[:, :1].expand_as(copies))
        assert copies[:, 0].std().item() == pytest.approx(table["pixelshuffle_expected_std"], rel=0.2)  # 441 draws
        assert stage.bias.abs().max() <= table["bias_bound"] + 1e-6
        assert stage.bias.abs().max() > 0.8 * table["bias_bound"]
        tied = stage.bias.view(21, 4)
        assert torch.equal(tied, tied[:, :1].expand_as(tied)) == table["bias_subpixel_copies_equal"]
    recorded = golden("cct/decoder")["init/upsample.1.conv.weight"].view(6, 4, 6)  # theirs too
    assert torch.equal(recorded, recorded[:, :1].expand_as(recorded))


def test_the_whole_network_has_the_published_size_and_resizes_what_is_left():
    with torch.device("meta"):
        encoder = ResNet(depth=50, output_stride=8)
        decoder = PSP(encoder.channels, encoder.strides)
        model = Segmenter(encoder, decoder, 21)
    count = sum(p.numel() for p in model.parameters())
    assert count + 30 * 16_296 == 47_210_776
    small = Segmenter(ResNet(depth=18, width=4, output_stride=8), PSP((4, 8, 16, 32), (4, 8, 8, 8)), 3).eval()
    embedding = small.embed(small.encode(torch.rand(1, 3, 41, 49)))
    assert small.classifier(embedding).shape == (1, 3, 48, 56)
    assert small(torch.rand(1, 3, 41, 49)).shape == (1, 3, 41, 49)


@pytest.mark.parametrize("upscale", [1, 2, 16])
def test_other_factors(upscale):
    decoder = PSP((32,), (32,), upscale=upscale)
    classifier = decoder.make_classifier(5)
    assert classifier(torch.rand(2, decoder.embedding, 3, 4)).shape == (2, 5, 3 * upscale, 4 * upscale)
