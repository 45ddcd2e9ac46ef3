"""The rank loss against the recorded one."""

import torch
from torch.testing import assert_close

from halfmask.losses.rank import order_probabilities, orthogonal_pixels, rank_consistency


def test_the_loss_and_its_gradient_are_the_recorded_ones(golden):
    data = golden("peers/rankmatch")
    strong = data["feat_s"].requires_grad_()
    loss = rank_consistency(data["feat_w"], strong, agents=64, top=4, first=data["first_index"].long().view(1))
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, strong)
    assert_close(gradient, data["grad"], rtol=1e-5, atol=1e-6)


def test_probabilities_of_orders_are_the_recorded_ones(golden):
    data = golden("peers/rankmatch")
    best, which = data["rank_prob_w"].topk(4, dim=-1)
    assert_close(order_probabilities(best), data["rank_w"], rtol=1e-5, atol=1e-7)
    strong = data["rank_prob_s"].gather(-1, which)
    assert_close(order_probabilities(strong), data["rank_s"], rtol=1e-5, atol=1e-7)


def test_probabilities_of_all_orders_add_up_to_one_and_the_sorted_order_is_likeliest():
    found = order_probabilities(torch.tensor([0.6, 0.3, 0.1]))
    assert_close(found.sum(), torch.tensor(1.0))
    assert found.argmax() == 0
    assert_close(found[0], torch.tensor(0.6 / 1.0 * 0.3 / 0.4))


def test_equal_features_cost_nothing_and_few_pixels_suffice():
    features = torch.randn(2, 5, 2, 2)
    assert rank_consistency(features, features.clone(), agents=64, top=4).abs() < 1e-4


def test_agents_differ_and_the_second_is_the_most_orthogonal():
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.1, 1.0], [-1.0, 0.0]]])
    places = orthogonal_pixels(features, 4, torch.tensor([0]))
    assert places[0, 1] == 2
    assert places[0].sort().values.tolist() == [0, 1, 2, 3]
