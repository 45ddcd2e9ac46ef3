"""The wide ResNet against its formula, written with functions, and the sizes of the published networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from halfmask.errors import RecipeError
from halfmask.models.decoders.pool import Pool
from halfmask.models.encoders.wide_resnet import WideResNet


def test_blocks_are_pre_activated_and_the_last_map_is_activated():
    torch.manual_seed(0)
    net = WideResNet(depth=16, widen=1).double().eval()  # two blocks per stage; the first stage keeps its shape
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    image = torch.randn(2, 3, 17, 20, dtype=torch.float64)
    state = net.state_dict()

    def activated(x, name):
        statistics = state[f"{name}.0.running_mean"], state[f"{name}.0.running_var"]
        return F.leaky_relu(F.batch_norm(x, *statistics, state[f"{name}.0.weight"], state[f"{name}.0.bias"]), 0.1)

    x = F.conv2d(image, state["stem.weight"], padding=1)
    expected = []
    for stage in range(3):
        for block in range(2):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            before = activated(x, f"{name}.first")
            inner = F.conv2d(before, state[f"{name}.second.0.weight"], stride=stride, padding=1)
            inner = F.conv2d(activated(inner, f"{name}.second.1"), state[f"{name}.second.2.weight"], padding=1)
            beside = F.conv2d(before, state[f"{name}.shortcut.weight"], stride=stride) if stride == 2 else x
            x = beside + inner
        expected.append(x)
    expected[-1] = activated(x, "last")
    for ours, theirs in zip(net(image), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_depth_that_is_no_wide_resnet_is_refused():
    with pytest.raises(RecipeError, match="Use 22 or 28"):
        WideResNet(depth=27)


@pytest.mark.parametrize(
    ("form", "parameters"), [({}, 1.47), ({"stages": 4, "first_stride": 2}, 5.93)], ids=["28-2", "var-28-2"]
)
def test_wide_resnet_with_ten_classes(form, parameters):
    with torch.device("meta"):
        encoder = WideResNet(**form)
        classifier = Pool(encoder.channels, encoder.strides).make_classifier(10)
    total = sum(parameter.numel() for part in (encoder, classifier) for parameter in part.parameters())
    assert total / 1e6 == pytest.approx(parameters, abs=0.005)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 1 + 8 * len(encoder.channels)
    assert len([c for c in convolutions if c.kernel_size == (1, 1)]) == len(encoder.channels)
