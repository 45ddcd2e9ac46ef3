"""Tiles: they cover, their weights sum to one, and they give what the whole image gives."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halfmask.data.folder.images.rasters import Picture
from halfmask.errors import RecipeError
from halfmask.infer.inference import class_map
from halfmask.infer.predict.tiles import Sweep, Tiling, choose_tiling, ramps, spans, tiled_class_map
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder
from halfmask.models.model import Segmenter
from halfmask.recipe.read import EvalRecipe
from tests.run.toy import random_window_model

TILINGS = [Tiling(48, 16, 8), Tiling(64, 16, 1), Tiling(32, 0, 16), Tiling(48, 24, 4), Tiling(16, 1, 1)]
LENGTHS = [1, 15, 48, 49, 63, 100, 257]


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("length", LENGTHS)
def test_spans_cover_the_axis_and_the_weights_sum_to_one(tiling: Tiling, length: int) -> None:
    cut = spans(length, tiling)
    assert cut[0][0] == 0
    assert cut[-1][1] == length
    assert all(start % tiling.align == 0 and 0 < stop - start <= tiling.side for start, stop in cut)
    total = np.zeros(length)
    for (start, stop), weight in zip(cut, ramps(cut, tiling.overlap), strict=True):
        assert weight.min() >= 0
        total[start:stop] += weight
    assert total == pytest.approx(1, abs=1e-6)


def test_weights_fall_to_zero_where_a_tile_has_least_context() -> None:
    middle = ramps([(0, 64), (48, 112), (96, 160)], 16)[1]
    assert middle[:4].tolist() == middle[-4:].tolist() == [0] * 4
    assert (np.diff(middle[4:12]) > 0).all()
    assert (middle[16:48] == 1).all()
    assert middle.tolist() == pytest.approx(middle[::-1].tolist())


class Near(Encoder):
    """Sees 3 pixels in each direction, at stride 4: a cell of 4 x 4 pixels and half a cell around."""

    channels, strides, mean, std = (5,), (4,), (0.0,) * 3, (1.0,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 7, stride=4, padding=3)

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        return [self.conv(image).relu()]


class Keep(Decoder):
    embedding = 5

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        return features[0]


def near_model() -> Segmenter:
    return Segmenter(Near(), Keep((5,), (4,)), 3).double().eval()


def swept(model: Segmenter, image: np.ndarray, tiling: Tiling, at_once: int, scratch: Path) -> tuple[Tensor, int]:
    """Put the blocks of a sweep together, and count the tiles."""
    calls = []

    def predict(images: list[np.ndarray]) -> Tensor:
        calls.extend(images)
        with torch.no_grad():
            return model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 255).softmax(1)

    def pictures(bands: list[tuple[int, int]]) -> Iterator[tuple[Picture]]:
        for top, bottom in bands:
            yield (Picture(image[top:bottom]),)

    sweep = Sweep(predict, image.shape[:2], 3, tiling, at_once, scratch)
    found = torch.full((3, *image.shape[:2]), torch.nan, dtype=torch.float64)
    for top, left, part, dates in sweep.blocks(pictures(sweep.bands)):
        where = np.s_[top : top + part.shape[1], left : left + part.shape[2]]
        assert np.array_equal(dates[0].pixels, image[where])
        assert found[0][where].isnan().all()
        found[:, *where] = part
    return found, len(calls)


@pytest.mark.parametrize("size", [(40, 40), (64, 200), (151, 130), (203, 64)])
@pytest.mark.parametrize("at_once", [1, 3])
def test_tiles_give_what_the_whole_image_gives_to_a_network_that_looks_near(
    size: tuple[int, int], at_once: int, tmp_path: Path
) -> None:
    model = near_model()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with torch.no_grad():
        whole = model(torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255).softmax(1)[0]
    found, tiles = swept(model, image, Tiling(64, 32, 4), at_once, tmp_path)
    assert tiles == len(spans(size[0], Tiling(64, 32, 4))) * len(spans(size[1], Tiling(64, 32, 4)))
    if all(side % 4 == 0 for side in size):  # else the last cell is cut, and enlarged by another factor
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)  # the weights are float32
    else:
        assert (found.argmax(0) == whole.argmax(0)).double().mean() > 0.99


def test_a_network_that_looks_far_sees_its_tile_only(tmp_path: Path) -> None:
    """The mean over the window differs from tile to tile: inside, where the weight is 1, it is the tile's own."""
    model = random_window_model()
    image = np.random.default_rng(0).integers(0, 256, (32, 80, 3), dtype=np.uint8)
    found, _ = swept(model, image, Tiling(48, 16, 1), 2, tmp_path)
    with torch.no_grad():
        first = model(torch.from_numpy(image[:, :48]).permute(2, 0, 1)[None].double() / 255).softmax(1)[0]
    torch.testing.assert_close(found[:, :, :32], first[:, :, :32], rtol=0, atol=1e-7)
    assert not torch.allclose(found[:, :, 40:48], first[:, :, 40:48], atol=1e-4)


def test_what_is_carried_from_row_to_row_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (151, 130, 3), dtype=np.uint8)
    model = near_model()
    expected, _ = swept(model, image, Tiling(64, 32, 4), 2, tmp_path)
    monkeypatch.setattr("halfmask.infer.predict.tiles._IN_MEMORY", 0)
    found, _ = swept(model, image, Tiling(64, 32, 4), 2, tmp_path)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(64, 200), (152, 132)])
def test_the_class_map_of_an_image_in_memory_comes_in_tiles_too(size: tuple[int, int], tmp_path: Path) -> None:
    model, image = near_model(), torch.randint(256, (3, *size)).double() / 255
    with torch.no_grad():
        model.classifier.bias -= model(image[None]).mean((0, 2, 3))  # so that no class wins everywhere
    found = tiled_class_map(model, image, EvalRecipe(mode="slide", window=64, stride=32), None, tmp_path)
    expected = class_map(model, image[None], EvalRecipe())[0]
    assert len(expected.unique()) > 1
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor of them has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(result) if isinstance(one, Tensor) and one.is_floating_point()]
        self.numbers = max([self.numbers, *sizes])
        return result


def test_the_probabilities_of_a_tile_are_the_largest_tensor_however_large_the_image(tmp_path: Path) -> None:
    model = Segmenter(Near(), Keep((5,), (4,)), 40).eval()
    protocol, most = EvalRecipe(mode="slide", window=64, stride=48, scales=(0.5, 2.0), flip=True), {}
    for rows in (200, 800):
        with Largest() as seen:
            tiled_class_map(model, torch.rand(3, rows, 64), protocol, None, tmp_path)
        most[rows] = seen.numbers
    assert most[200] == most[800] == 40 * 128 * 128  # of a tile at the scale 2


def test_tiles_are_chosen_from_the_training_crop() -> None:
    model = near_model()
    assert choose_tiling(model, EvalRecipe(), 320) == (640, 160, 4)
    assert choose_tiling(model, EvalRecipe(), 64) == (512, 128, 4)
    assert choose_tiling(model, EvalRecipe(), None) == (512, 128, 4)
    # a sliding protocol names window and stride
    assert choose_tiling(model, EvalRecipe(mode="slide"), 300) == (300, 100, 4)
    assert choose_tiling(model, EvalRecipe(mode="slide", window=400, stride=300), 300) == (400, 100, 4)
    # tiles must fit the network; the overlap is at least the one asked for
    assert choose_tiling(random_window_model(size_multiple=14), EvalRecipe(), 320, 500, 100) == (504, 112, 14)
    assert choose_tiling(random_window_model(size_multiple=32), EvalRecipe(), 320, 32, 8) == (64, 32, 32)
    assert choose_tiling(random_window_model(size_multiple=32), EvalRecipe(), 320, 32, 0) == (32, 0, 32)


def test_an_overlap_that_leaves_no_progress_is_refused() -> None:
    with pytest.raises(RecipeError, match="at most 32"):
        choose_tiling(near_model(), EvalRecipe(), 64, 64, 40)
