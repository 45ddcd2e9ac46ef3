"""Same numbers as the published networks, on recorded tensors.

All recordings were computed in float64. Those stored as float64 are compared at 1e-12; those stored as float32 carry
a rounding of 6e-8 relative, hence 1e-5 for values up to about 100. The networks run in float64 too, so any real
difference (a rate, an epsilon, an alignment) shows as 1e-3 or more.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.models.decoders.deeplabv3plus import DeepLabV3Plus
from halfmask.models.decoders.dpt import DPT
from halfmask.models.decoders.psp import PSP
from halfmask.models.decoders.segformer import SegFormer
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.mit import MiT
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.model import Segmenter
from tests.oracles.forms import plain_forms

# The recorded images are already normalized.
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
    assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def deeplab(deeplab_names):
    def build(tensors: dict[str, Tensor], output_stride: int) -> Segmenter:
        encoder = ResNet(depth=50, width=4, blocks=(2, 2, 2, 2), output_stride=output_stride)
        decoder = DeepLabV3Plus(encoder.channels, encoder.strides, aspp=16, low=6, embedding=24)
        model = Segmenter(encoder, decoder, 7, **IDENTITY)
        state = deeplab_names(part(tensors, "weight."))
        model.load_state_dict({**state, "mean": model.mean, "std": model.std})
        return model.double()

    return build


@pytest.mark.parametrize("output_stride", [16, 8])
def test_deeplab_equals_the_published_network(golden, deeplab, output_stride):
    tensors = golden(f"unimatch/deeplab_os{output_stride}")
    model = deeplab(tensors, output_stride).eval()
    features = model.encode(tensors["input"].double())
    close(features[0], tensors["c1"])
    close(features[-1], tensors["c4"])
    close(model.decoder._pyramid(features[-1]), tensors["aspp"])
    close(model(tensors["input"].double()), tensors["logits"])


def test_deeplab_in_train_mode_gives_the_published_logits_and_running_statistics(golden, deeplab, deeplab_names):
    tensors = golden("unimatch/deeplab_os16")
    model = deeplab(tensors, 16).train()
    close(model(tensors["input"].double()), tensors["logits_train_mode"])
    state = model.state_dict()
    for key, expected in deeplab_names(part(tensors, "after_train_forward.")).items():
        close(state[key], expected)


def test_perturbing_the_encoder_taps_gives_the_published_perturbed_logits(golden, deeplab):
    tensors = golden("unimatch/deeplab_os16")
    model = deeplab(tensors, 16).eval()
    c1, c2, c3, c4 = model.encode(tensors["input"].double())
    masked = [c1 * tensors["fp_mask_c1"][..., None, None], c2, c3, c4 * tensors["fp_mask_c4"][..., None, None]]
    both = [torch.cat(pair) for pair in zip([c1, c2, c3, c4], masked, strict=True)]
    clean, perturbed = model.classify(model.decode(both), (65, 81)).chunk(2)
    close(clean, tensors["fp_logits_clean"])
    close(perturbed, tensors["fp_logits_perturbed"])


@pytest.fixture
def tiny_dpt(golden, dpt_names):
    tensors = golden("unimatch/dpt_forward")
    encoder = DINOv2(dim=24, heads=2)
    decoder = DPT(encoder.channels, encoder.strides, features=12, projections=(8, 8, 12, 16))
    model = Segmenter(encoder, decoder, 7, **IDENTITY)
    state = dpt_names(part(tensors, "weight."))
    model.load_state_dict({**state, "mean": model.mean, "std": model.std})
    return model.double(), tensors


def test_dinov2_features_equal_the_published_taps(tiny_dpt):
    model, tensors = tiny_dpt
    close(model.encoder.position_embedding(5, 7), tensors["pos_embed_interpolated"])
    for index, feature in enumerate(model.encode(tensors["input"].double())):
        close(feature.flatten(2).transpose(1, 2), tensors[f"feature_{index}"])


def test_block_outputs_equal_the_published_ones_before_the_norm(tiny_dpt):
    model, tensors = tiny_dpt
    outputs = {}
    for index in model.encoder.taps:
        model.encoder.net.blocks[index].register_forward_hook(lambda _, __, x, index=index: outputs.update({index: x}))
    model.encode(tensors["input"].double())
    for level, index in enumerate(model.encoder.taps):
        close(outputs[index], tensors[f"prenorm_feature_{level}"])


def test_dpt_logits_equal_the_published_ones_before_and_after_upsampling(tiny_dpt):
    model, tensors = tiny_dpt
    image = tensors["input"].double()
    close(model.classifier(model.decode(model.encode(image))), tensors["head_out"])
    close(model(image), tensors["logits"])


def test_timms_position_embedding_is_another_one(tiny_dpt):
    # Guards the default: the difference between the two rules is far above every tolerance used here.
    model, tensors = tiny_dpt
    model.encoder.interpolation = "size"
    difference = (model.encoder.position_embedding(5, 7) - tensors["pos_embed_interpolated"]).abs().max()
    assert difference > 1e-3
    for interpolation in ("offset", "size"):
        model.encoder.interpolation = interpolation
        assert model.encoder.position_embedding(37, 37) is model.encoder.net.pos_embed


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_mit_b0_equals_the_published_encoder(golden, dtype, tolerance):
    # Stored as float32; a published float32 run deviates by 2e-6 itself.
    tensors = golden("allspark/mit_b0")
    encoder = MiT(size="b0")
    encoder.load_state_dict({key: value.float() for key, value in part(tensors, "weight/").items()})
    encoder = encoder.to(dtype).eval()
    for stage, feature in enumerate(encoder(tensors["input/image"].to(dtype)), start=1):
        expected = tensors[f"output/stage{stage}"].to(dtype)
        assert_close(feature, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", [nullcontext, plain_forms], ids=["fast", "plain"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_mlp_head_equals_the_published_head(golden, mlp_head_names, form, dtype, tolerance):
    tensors = golden("allspark/mlp_head")
    decoder = SegFormer((32, 64, 160, 256), (4, 8, 16, 32), embedding=32, dropout=0.0)
    head = torch.nn.ModuleDict({"decoder": decoder, "classifier": decoder.make_classifier(5)})
    head.load_state_dict(mlp_head_names(part(tensors, "weight/")))
    head = head.to(dtype)
    features = [tensors[f"input/stage{stage}"].to(dtype) for stage in range(1, 5)]

    def logits() -> Tensor:
        with form():
            return head["classifier"](decoder.refine(decoder.fuse(features)))

    head.eval()
    assert_close(logits(), tensors["eval/out"].to(dtype), rtol=0, atol=tolerance)
    head.train()
    assert_close(logits(), tensors["train/out"].to(dtype), rtol=0, atol=tolerance)
    for name in ("mean", "var"):
        expected = tensors[f"train/bn_running_{name}_after"].to(dtype)
        assert_close(getattr(decoder.norm, f"running_{name}"), expected, rtol=0, atol=tolerance)


def test_psp_equals_the_published_module_in_value_gradient_and_statistics(golden, psp_names):
    # Recorded in float32, hence 1e-5.
    tensors = golden("cct/psp")
    decoder = PSP((16,), (8,)).double()
    decoder.load_state_dict(psp_names(part(tensors, "w/")))
    x = tensors["in"].double().requires_grad_()

    decoder.eval()
    close(decoder.refine(decoder.fuse([x])), tensors["out_eval"])
    decoder.train()
    out = decoder.refine(decoder.fuse([x]))
    close(out, tensors["out_train"])
    (gradient,) = torch.autograd.grad(out, x, tensors["grad_out"].double())
    close(gradient, tensors["grad_in"])
    state = decoder.state_dict()
    for key, expected in psp_names(part(tensors, "w_after_train/")).items():
        close(state[key], expected)
