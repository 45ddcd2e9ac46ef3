"""The bottleneck plugs into any encoder and decoder, takes any image, keeps nothing large, and says what is wrong."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmask.errors import RecipeError
from halfmask.infer.bundle import load_bundle, save_bundle
from halfmask.models import channel_attention
from halfmask.models.bottlenecks._bottleneck import Bottleneck
from halfmask.models.bottlenecks.allspark import AllSpark
from halfmask.models.build import Builder, build_model
from halfmask.models.encoders._encoder import Encoder
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from halfmask.testing import tiny_builder, tiny_task
from tests.oracles.forms import plain_forms

TASK = Task("segmentation", ("road", "tree", "sky"))
NETWORKS: dict[str, dict[str, Any]] = {
    "mit-segformer": {"encoder": {"name": "mit", "size": "b0"}, "decoder": {"name": "segformer", "embedding": 16}},
    "vit-dpt": {"encoder": {"name": "dinov2", "dim": 24, "heads": 2}, "decoder": {"name": "dpt", "features": 8}},
    "resnet-deeplab": {
        "encoder": {"name": "resnet", "depth": 50, "width": 4, "blocks": [1, 1, 1, 1], "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 12},
    },
    "timm-segformer": {
        "encoder": {"name": "timm", "model": "convnext_atto"},
        "decoder": {"name": "segformer", "embedding": 16},
    },
    "timm-psp": {"encoder": {"name": "timm", "model": "resnet10t"}, "decoder": {"name": "psp", "embedding": 8}},
}


def builder(network: dict[str, Any], crop: int = 70, **bottleneck: Any) -> Builder:
    section = {**network, "bottleneck": {"name": "allspark", **bottleneck}}
    return Builder(ModelRecipe.model_validate(section), TASK, crop=crop)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_plugs_into_any_encoder_and_decoder_and_takes_any_image(name, tmp_path):
    model = builder(NETWORKS[name])().eval()
    multiple = model.size_multiple
    sizes = [
        (side[0] // multiple * multiple, side[1] // multiple * multiple) for side in ((70, 98), (126, 70), (33, 65))
    ]
    for height, width in [size for size in sizes if min(size) > 0]:
        assert model(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)
    # The bundle holds the bottleneck and no memory, and gives the same logits bit by bit.
    save_bundle(tmp_path, model, TASK)
    bundle = load_bundle(tmp_path)
    assert isinstance(bundle.model.bottleneck, AllSpark)
    assert bundle.meta["model"]["model"]["bottleneck"]["heads"] == 2
    image = torch.rand(2, 3, *sizes[0])
    assert torch.equal(bundle.model(image), model(image))
    # One image does not depend on the others of its batch.
    torch.testing.assert_close(model(image)[:1], model(image[:1]), rtol=0, atol=1e-5)


def test_a_wide_last_map_is_reduced_inside_and_restored():
    network = {
        "encoder": {"name": "resnet", "depth": 50, "width": 16, "blocks": [1, 1, 1, 1], "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 12},
    }
    assert builder(network)().bottleneck.width == 512
    wide = Builder(ModelRecipe.model_validate({**network, "bottleneck": "allspark"}), TASK, crop=64)(
        encoder={"width": 32}
    )
    assert (wide.bottleneck.channels, wide.bottleneck.width) == (1024, 512)
    assert builder(network, width=40)().bottleneck.width == 40


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Features of two labeled and two unlabeled images, and three groups of keys."""
    return torch.randn(4, 8, 3, 3, dtype=torch.float64), torch.randn(4, 8, 9).double(), torch.randn(3, 8, 9).double()


def plain_attention(
    weights: tuple[Tensor, Tensor, Tensor], query: Tensor, groups: list[Tensor], heads: list[slice]
) -> list[Tensor]:
    """One image, head after head: softmax of the normalized scores, from channels (C, d) and groups of channels."""
    results = []
    for rows in heads:
        q, k, v = weights[0][rows] @ query, *(torch.cat([w[rows] @ group for group in groups]) for w in weights[1:])
        scores = q @ k.T
        normalized = (scores - scores.mean()) / torch.sqrt(scores.var(correction=0) + 1e-5)
        results.append(normalized.softmax(-1) @ v)
    return results


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("cross_heads", ["pooled", "separate"])
def test_every_variant_is_what_its_description_says(parts, cross_heads, share):
    _, tokens, keys = parts[0], parts[1], parts[2]
    bottleneck = AllSpark(8, heads=2, dropout=0.0, cross_heads=cross_heads, share_projections=share).double()
    state = bottleneck.state_dict()
    assert any(key.startswith("own.") for key in state) is not share
    cross = tuple(state[f"cross.{name}.weight"] for name in "qkv")
    own = cross if share else tuple(state[f"own.{name}.weight"] for name in "qkv")
    split = [slice(0, 8), slice(8, 16)]

    out = bottleneck.attention(tokens.transpose(1, 2), keys, labeled=2)
    for image in range(2):
        heads = [slice(None)] if cross_heads == "pooled" else split
        merged = torch.cat(plain_attention(cross, tokens[image], list(keys), heads))
        torch.testing.assert_close(out[image], state["cross.out.weight"] @ merged, rtol=1e-10, atol=1e-10)
    for image in (2, 3):
        heads = plain_attention(own, tokens[image], [tokens[image]], split)
        # With its own weights the published order of the merged heads; with shared ones that of the cross path.
        merged = torch.cat(heads) if share else torch.stack(heads, 1).flatten(0, 1)
        weight = state["cross.out.weight"] if share else state["own.out.weight"]
        torch.testing.assert_close(out[image], weight @ merged, rtol=1e-10, atol=1e-10)


def test_groups_that_take_no_part_are_as_if_they_did_not_exist(parts):
    features, _, keys = parts
    bottleneck = AllSpark(8, heads=2, dropout=0.0).double()
    present = torch.tensor([True, False, True])
    for cross_heads in ("pooled", "separate"):
        bottleneck.cross_heads = cross_heads
        tokens, residual = bottleneck.embed(features)
        masked = bottleneck.attend(tokens, residual, keys * present.view(-1, 1, 1), labeled=4, present=present)
        without = bottleneck.attend(tokens, residual, keys[present], labeled=4)
        torch.testing.assert_close(masked, without, rtol=0, atol=1e-12)


def test_evaluation_uses_the_weights_of_labeled_images_only():
    bottleneck = AllSpark(8).eval()
    x = torch.randn(2, 8, 4, 4)
    before = bottleneck(x)
    with torch.no_grad():
        for parameter in bottleneck.own.parameters():
            parameter.mul_(-3)
    assert torch.equal(bottleneck(x), before)


def test_dropout_acts_in_training_only_and_is_drawn_anew():
    bottleneck = AllSpark(8, dropout=0.5)
    x = torch.randn(2, 8, 4, 4)
    assert not torch.equal(bottleneck(x), bottleneck(x))
    bottleneck.eval()
    assert torch.equal(bottleneck(x), bottleneck(x))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_pass_keeps_no_tensor_of_the_size_of_the_scores(dropout, monkeypatch):
    """Memory of 21 classes x 64 channels x 25 tokens, two labeled and two unlabeled images."""
    monkeypatch.setattr(channel_attention, "STREAM_BYTES", 0)
    bottleneck = AllSpark(64, heads=2, dropout=dropout).train()
    features, memory = torch.randn(4, 64, 5, 5, requires_grad=True), torch.randn(21, 64, 25)
    entries = []

    def pack(tensor: Tensor) -> Tensor:
        entries.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens, residual = bottleneck.embed(features)
        out = bottleneck.attend(tokens, residual, memory, labeled=2)
    rows, columns = 2 * 64, 21 * 2 * 64
    assert max(entries) < rows * columns  # bytes: not even one per entry of one image's scores
    out.sum().backward()
    assert features.grad.isfinite().all()


def saved(classes: int, images: int, dropout: float, forms: AbstractContextManager) -> tuple[int, int]:
    """Bytes that attention to a memory keeps, and entries of the largest tensor: 512 channels, 289 tokens, 2 heads."""
    bottleneck = AllSpark(512, dropout=dropout).to("meta").train()
    tokens = torch.empty(images, 289, 512, device="meta", requires_grad=True)
    memory = torch.empty(classes, 512, 289, device="meta")
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes(), storage.nbytes() // tensor.itemsize
        return tensor

    with forms, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = bottleneck.attention(tokens, memory, labeled=images)
    assert out.requires_grad
    return sum(size for size, _ in storages.values()), max(entries for _, entries in storages.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("classes", "images", "fewer"), [(21, 1, 3.0), (21, 2, 3.0), (81, 1, 2.4), (150, 1, 2.4)])
def test_auto_keeps_no_scores_at_the_published_sizes(classes, images, fewer, dropout, monkeypatch):
    """Pascal, COCO and ADE20K at crop 513, against whole score matrices; no size is forced to stream."""
    monkeypatch.setattr(channel_attention, "_random_state", lambda _: torch.zeros(1))  # there is none for shapes
    scores = (2 * 512) * (classes * 2 * 512)  # entries, of one image
    plain, largest = saved(classes, images, dropout, plain_forms())
    assert largest >= scores
    ours, largest = saved(classes, images, dropout, nullcontext())
    assert largest < scores
    assert plain >= fewer * ours


class Tokens(Encoder):
    """An encoder that forgets to reshape its last output."""

    def __init__(self, *, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 4, stride=4)
        self.channels, self.strides = (6,), (4,)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image).flatten(2).transpose(1, 2)]


class Halved(Bottleneck):
    """A bottleneck of somebody else."""

    def __init__(self, channels: int, *, factor: float = 0.5) -> None:
        super().__init__(channels)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_an_encoder_without_a_last_map_is_refused_before_training():
    network = {"encoder": {"name": f"{__name__}:Tokens"}, "decoder": {"name": "segformer", "embedding": 8}}
    with pytest.raises(RecipeError, match=r"a map \(batch, 6, height, width\).*shape \(1, 256, 6\).*reshape its"):
        builder(network)()


def test_a_bottleneck_from_outside_works_by_its_import_path():
    section = {**NETWORKS["mit-segformer"], "bottleneck": {"name": f"{__name__}:Halved", "factor": 0.25}}
    build = Builder(ModelRecipe.model_validate(section), TASK, crop=64)
    model = build().eval()
    assert model.bottleneck.factor == 0.25
    again = build_model(model.spec).eval()
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(image), again(image))
    with pytest.raises(RecipeError, match=r"names .*Halved. Set model.bottleneck=allspark or null"):
        build(bottleneck={"name": "allspark"})


def test_a_method_keeps_what_the_recipe_says_about_its_bottleneck():
    build = builder(NETWORKS["mit-segformer"], heads=3)
    assert build(bottleneck={"name": "allspark"}).bottleneck.heads == 3
    assert tiny_builder(tiny_task())(bottleneck={"name": "allspark"}).bottleneck.heads == 2


def test_a_network_of_the_smp_library_is_told_what_to_choose():
    section = {"name": "smp", "encoder": "resnet18", "bottleneck": "allspark"}
    with pytest.raises(RecipeError, match="needs an encoder and a decoder of ours"):
        Builder(ModelRecipe.model_validate(section), TASK, crop=64)()


@pytest.mark.parametrize(("channels", "side"), [(8, 3), (12, 1)])
def test_a_map_of_constant_channels_gives_finite_gradients(channels, side):
    """All scores equal: their variance is 0 and the epsilon of the norm decides."""
    bottleneck = AllSpark(channels, dropout=0.0)
    x = torch.zeros(2, channels, side, side, requires_grad=True)
    F.mse_loss(bottleneck(x), torch.ones(2, channels, side, side)).backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in bottleneck.parameters() if p.grad is not None)
