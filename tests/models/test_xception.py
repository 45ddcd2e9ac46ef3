"""Xception-65 against its description, written with functions: rectifiers in place, where the authors have them so."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from halfmask.errors import CheckpointError
from halfmask.models.encoders.xception import Xception
from halfmask.run.loop.trainer import recompute_blocks

TINY = {"width": 1, "blocks": 2}
LAST = 6  # blocks 4 and 5 stand for blocks 4 to 19, block 6 for block 20


class Plain:
    """The forward pass from a state dict, in train mode; it moves the statistics of its own copy."""

    def __init__(self, state, output_stride):
        self.state = {key.removeprefix("net."): value.detach().clone() for key, value in state.items()}
        self.parameters = {key: v for key, v in self.state.items() if key.endswith((".weight", ".bias"))}
        for value in self.parameters.values():
            value.requires_grad_()
        self.strided = (1, 2, 3) if output_stride == 16 else (1, 2)
        self.dilation = 1 if output_stride == 16 else 2

    def norm(self, x, name):
        statistics = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        affine = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.batch_norm(x, *statistics, *affine, training=True, momentum=0.0003, eps=1e-5)

    def depthwise(self, x, name, stride, dilation):
        weight = self.state[f"{name}.depthwise.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=dilation, dilation=dilation, groups=len(weight))
        return self.norm(x, f"{name}.bn1")

    def pointwise(self, x, name):
        return self.norm(F.conv2d(x, self.state[f"{name}.pointwise.weight"]), f"{name}.bn2")

    def block(self, x, number):
        name, stride = f"block{number}", 2 if number in self.strided else 1
        dilation = self.dilation if number >= 4 else 1
        if 4 <= number < LAST:
            y, beside = F.relu_(x), x  # the same memory: what is added is rectified
        else:
            beside = self.norm(F.conv2d(x, self.state[f"{name}.skip.weight"], stride=stride), f"{name}.skipbn")
            y = F.relu(x)
        y = self.pointwise(self.depthwise(y, f"{name}.sepconv1", 1, dilation), f"{name}.sepconv1")
        y = self.pointwise(self.depthwise(F.relu(y), f"{name}.sepconv2", 1, dilation), f"{name}.sepconv2")
        self.second = y
        y = self.pointwise(self.depthwise(F.relu(y), f"{name}.sepconv3", stride, dilation), f"{name}.sepconv3")
        return y + beside

    def __call__(self, image):
        x = F.relu(self.norm(F.conv2d(image, self.state["conv1.weight"], stride=2, padding=1), "bn1"))
        x = F.relu(self.norm(F.conv2d(x, self.state["conv2.weight"], padding=1), "bn2"))
        for number in range(1, LAST + 1):
            x = self.block(x, number)
            if number == 2:
                low = self.second
        for name in ("conv3", "conv4", "conv5"):
            x = F.relu(self.pointwise(F.relu(self.depthwise(x, name, 1, self.dilation)), name))
        return [low, x]


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_maps_gradients_and_statistics_are_those_of_the_description(output_stride, recompute):
    torch.manual_seed(0)
    encoder = Xception(**TINY, output_stride=output_stride).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    plain = Plain(encoder.state_dict(), output_stride)
    if recompute:
        assert recompute_blocks(encoder) == LAST + 3
    image = torch.randn(3, 3, 65, 97, dtype=torch.float64, requires_grad=True)
    copy = image.detach().clone().requires_grad_()
    given, expected = encoder(image), plain(copy)
    assert (given[0] < 0).any()
    for ours, theirs in zip(given, expected, strict=True):
        # About 40 normalized layers of float64 between image and last map.
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    factors = [torch.randn_like(x) for x in expected]
    for maps in (given, expected):
        torch.autograd.backward([(x * factor).sum() for x, factor in zip(maps, factors, strict=True)])
    assert_close(image.grad, copy.grad, rtol=1e-8, atol=1e-8)
    for name, parameter in encoder.net.named_parameters():
        assert_close(parameter.grad, plain.parameters[name].grad, rtol=1e-8, atol=1e-8, msg=name)
    moved = {name: value for name, value in encoder.net.state_dict().items() if "running" in name}
    for name, value in moved.items():
        assert_close(value, plain.state[name], rtol=1e-12, atol=1e-12, msg=name)


def test_a_file_with_the_authors_names_fills_it_without_its_classifier(tmp_path):
    source = Xception(**TINY)
    names = {key.removeprefix("net."): value for key, value in source.state_dict().items()}
    torch.save(names | {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, tmp_path / "xception.pth")
    loaded = Xception(**TINY, weights=str(tmp_path / "xception.pth"))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    names["block7.sepconv1.bn1.bias"] = names.pop("block6.sepconv1.bn1.bias")
    torch.save(names, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match=r"(?s)missing: block6\.sepconv1\.bn1\.bias.*unexpected: block7"):
        Xception(**TINY, weights=str(tmp_path / "strange.pth"))
