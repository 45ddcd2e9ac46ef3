"""Same class maps and scores as the published evaluation of UniMatch and UniMatch V2, with their networks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfmask.infer.inference import center, class_map
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.models.decoders.deeplabv3plus import DeepLabV3Plus
from halfmask.models.decoders.dpt import DPT
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.model import Model, Segmenter
from halfmask.recipe.read import EvalRecipe

Tensors = dict[str, Tensor]
Renamer = Callable[[Tensors], Tensors]
# The recorded images are already normalized.
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def load(model: Model, tensors: Tensors, names: Renamer) -> Model:
    weights = {key.removeprefix("weight."): value for key, value in tensors.items() if key.startswith("weight.")}
    model.load_state_dict({**names(weights), "mean": model.mean, "std": model.std})
    return model.double().eval()


@pytest.fixture(scope="module")
def described(shared: Path) -> dict[str, dict[str, list[list[int]]]]:
    """Sizes of the images of each role and of what the published code gave its network."""
    return json.loads((shared / "golden/unimatch/meta.json").read_text())  # type: ignore[no-any-return]


def check(model: Model, tensors: Tensors, role: str, protocol: EvalRecipe, passes: list[list[int]]) -> None:
    matrix, seen = ConfusionMatrix(19), []

    def watch(_: object, given: tuple[Tensor]) -> None:
        seen.extend([list(given[0].shape[-2:])] * len(given[0]))

    model.encoder.register_forward_pre_hook(watch)
    images = [key.removeprefix(f"{role}.image") for key in tensors if key.startswith(f"{role}.image")]
    assert images
    for number in images:
        found = class_map(model, tensors[f"{role}.image{number}"].double(), protocol)
        assert torch.equal(found, tensors[f"{role}.pred{number}"]), number
        matrix.update(found, tensors[f"{role}.label{number}"])
    assert sorted(seen) == sorted(passes)  # windows of one size pass together
    check_scores(matrix, tensors, role)


def check_scores(matrix: ConfusionMatrix, tensors: Tensors, role: str) -> None:
    scores = matrix.scores(tuple(map(str, range(19))), "zero")
    assert scores.miou == pytest.approx(tensors[f"{role}.miou"].item() / 100, abs=1e-10)
    assert scores.iou == pytest.approx((tensors[f"{role}.iou"] / 100).tolist(), abs=1e-10)


V2 = [
    ("v2_original", EvalRecipe(mode="whole", fit="resize")),
    ("v2_sliding", EvalRecipe(mode="slide", window=28, border="shift", batch=3)),
]
V1 = [("v1_original", EvalRecipe()), ("v1_sliding", EvalRecipe(mode="slide", window=33, border="clip"))]


@pytest.mark.parametrize(("role", "protocol"), V2, ids=[role for role, _ in V2])
def test_unimatch_v2_protocols(golden, described, dpt_names, role: str, protocol: EvalRecipe) -> None:
    tensors = golden("unimatch/v2_eval")
    encoder = DINOv2(dim=24, heads=2)
    decoder = DPT(encoder.channels, encoder.strides, features=12, projections=(8, 8, 12, 16))
    model = load(Segmenter(encoder, decoder, 19, **IDENTITY), tensors, dpt_names)
    check(model, tensors, role, protocol, described[f"eval_{role}"]["forward_shapes"])


@pytest.mark.parametrize(("role", "protocol"), V1, ids=[role for role, _ in V1])
def test_unimatch_v1_protocols(golden, described, deeplab_names, role: str, protocol: EvalRecipe) -> None:
    tensors = golden("unimatch/v1_eval")
    encoder = ResNet(depth=50, width=4, blocks=(2, 2, 2, 2), output_stride=16)
    decoder = DeepLabV3Plus(encoder.channels, encoder.strides, aspp=16, low=6, embedding=24)
    model = load(Segmenter(encoder, decoder, 19, **IDENTITY), tensors, deeplab_names)
    check(model, tensors, role, protocol, described[f"eval_{role}"]["forward_shapes"])


def test_unimatch_v1_center_crop(golden, deeplab_names) -> None:
    """The published mode predicts and scores the middle window of every image."""
    tensors, role = golden("unimatch/v1_eval"), "v1_center_crop"
    encoder = ResNet(depth=50, width=4, blocks=(2, 2, 2, 2), output_stride=16)
    decoder = DeepLabV3Plus(encoder.channels, encoder.strides, aspp=16, low=6, embedding=24)
    model = load(Segmenter(encoder, decoder, 19, **IDENTITY), tensors, deeplab_names)
    protocol = EvalRecipe(mode="center_crop", window=33)
    matrix = ConfusionMatrix(19)
    for number in range(2):
        image, label = tensors[f"{role}.image{number}"].double(), tensors[f"{role}.label{number}"]
        top, left, height, width = center((image.shape[-2], image.shape[-1]), protocol)
        found = class_map(model, image[..., top : top + height, left : left + width], protocol)
        assert torch.equal(found, tensors[f"{role}.pred{number}"]), number
        matrix.update(found, label[..., top : top + height, left : left + width])
    check_scores(matrix, tensors, role)
