"""Activation maps against a plain loop, the two thresholds, and the CRF against its definition."""

import numpy as np
import pytest
import torch

from halfmask.teaching.activation_maps import activation_maps, pseudo_mask
from halfmask.teaching.dense_crf import refine_labels

THRESHOLDS = {"high": 0.3, "low": 0.05}


def test_maps_are_rectified_summed_and_mirrored_back():
    weight = torch.randn(3, 2, dtype=torch.float64)

    def scores(image):
        return torch.einsum("kc,bchw->bkhw", weight, image)

    image = torch.rand(2, 4, 6, dtype=torch.float64)
    found = activation_maps(scores, image, scales=(1.0,), flip=True)
    expected = torch.zeros(3, 4, 6, dtype=torch.float64)
    for k in range(3):
        for y in range(4):
            for x in range(6):  # the scores are of single pixels: the mirrored copy gives the same map
                expected[k, y, x] = 2 * max(0.0, float(weight[k] @ image[:, y, x]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_maps_of_every_scale_have_the_sides_the_network_takes():
    seen = []

    def scores(image):
        seen.append(tuple(image.shape[-2:]))
        return image.mean(1, keepdim=True)

    maps = activation_maps(scores, torch.rand(3, 30, 52), scales=(0.5, 2.0), flip=False, multiple=8)
    assert seen == [(16, 24), (64, 104)]
    assert maps.shape == (1, 30, 52)


def test_tags_decide_which_classes_may_appear():
    maps = torch.rand(4, 8, 8)
    tags = torch.tensor([True, False, True, False])
    assert set(pseudo_mask(maps, tags, **THRESHOLDS).unique().tolist()) <= {0, 2, 255}
    assert pseudo_mask(maps, torch.zeros(4, dtype=torch.bool), **THRESHOLDS).unique().tolist() == [255]
    assert pseudo_mask(maps, torch.tensor([True, False, False, False]), **THRESHOLDS).unique().tolist() == [0]


def test_two_thresholds_leave_the_doubtful_unknown():
    maps = torch.zeros(3, 1, 5)
    maps[1, 0] = torch.tensor([10.0, 3.5, 2.0, 0.4, 0.0])
    tags = torch.tensor([True, True, False])
    assert pseudo_mask(maps, tags, **THRESHOLDS).tolist() == [[1, 1, 255, 0, 0]]
    assert pseudo_mask(maps, tags, **THRESHOLDS, background=None, ignore_index=9).tolist() == [[1, 1, 9, 9, 9]]
    other = torch.tensor([False, True, True])
    moved = maps[[1, 2, 0]]  # background is the last class
    assert pseudo_mask(moved, other[[1, 2, 0]], **THRESHOLDS, background=2).tolist() == [[0, 0, 255, 2, 2]]


def test_the_larger_map_wins_after_each_is_scaled_by_its_own_maximum():
    maps = torch.tensor([[[0.0, 0.0]], [[100.0, 60.0]], [[0.1, 1.0]]])
    assert pseudo_mask(maps, torch.tensor([True, True, True]), **THRESHOLDS).tolist() == [[1, 2]]


def mean_field(label: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The CRF at full resolution by loops, as its paper defines it."""
    height, width = label.shape
    values = np.unique(label)
    places = [(y, x) for y in range(height) for x in range(width)]
    color = 255 * image
    near, far = np.zeros((len(places),) * 2), np.zeros((len(places),) * 2)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            distance = (y - v) ** 2 + (x - u) ** 2
            difference = ((color[:, y, x] - color[:, v, u]) ** 2).sum()
            near[i, j] = np.exp(-distance / (2 * 3.0**2))
            far[i, j] = np.exp(-distance / (2 * 50.0**2) - difference / (2 * 5.0**2))
    kernels = [k / np.sqrt(np.outer(k.sum(1), k.sum(1))) for k in (near, far)]
    flat = label.reshape(-1)
    right = np.where(flat[:, None] == values, 0.7, 0.3 / (len(values) - 1))
    q = right / right.sum(1, keepdims=True)
    for _ in range(10):
        energy = np.log(right) + 3 * kernels[0] @ q + 10 * kernels[1] @ q
        q = np.exp(energy - energy.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return values[q.argmax(1)].reshape(height, width)


def test_the_crf_is_the_mean_field_of_its_definition_and_follows_colors():
    rng = np.random.default_rng(0)
    image = np.full((3, 12, 14), 0.2)
    image[:, :, 7:] = 0.8
    image += rng.normal(0, 0.01, image.shape)
    label = np.zeros((12, 14), dtype=np.int64)
    label[:, 9:] = 4  # two columns short of the edge in the image
    label[2, 2] = 4  # noise
    expected = mean_field(label, image)
    found = refine_labels(torch.from_numpy(label), torch.from_numpy(image).float())
    assert np.array_equal(found.numpy(), expected)
    assert (expected[:, :7] == 0).all()
    assert (expected[:, 7:] == 4).all()


@pytest.mark.parametrize("size", [(40, 50), (7, 90)])
def test_a_coarse_grid_keeps_size_and_labels(size):
    label = torch.zeros(size, dtype=torch.int64)
    label[:, size[1] // 2 :] = 7
    image = (label > 0).float().expand(3, *size)
    moved = (refine_labels(label, image, cells=100) != label).any(0).nonzero().flatten()
    assert ((moved - size[1] // 2).abs() <= 5).all()  # a border is as fine as a cell
    assert set(refine_labels(label, image, cells=100).unique().tolist()) == {0, 7}
    assert torch.equal(refine_labels(torch.full(size, 3), image), torch.full(size, 3))
