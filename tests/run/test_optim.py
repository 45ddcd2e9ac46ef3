"""The learning rate of every schedule at steps where its value is known."""

import math

import pytest

from halfmask.errors import RecipeError
from halfmask.method import Method, Optim, groups_of
from halfmask.recipe.read import OptimRecipe, load
from halfmask.run.loop.optim import make_optimizers, rate_factor, resolve_optimizers
from halfmask.testing.tiny import tiny_builder, tiny_task


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("poly", lambda t: (1 - t) ** 0.9),
        ("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2),
        ("cosine_7_16", lambda t: math.cos(7 * math.pi * t / 16)),
        ("constant", lambda t: 1),
    ],
)
def test_rates_follow_the_formula(schedule, formula):
    optim = OptimRecipe(schedule=schedule)
    total = 2**20
    for step in (0, 1, 1000, total // 4, total // 2, total - 1, total):
        assert rate_factor(step, total, optim) == pytest.approx(formula(step / total), abs=1e-12)


def test_seven_sixteenths_of_the_cosine_end_at_a_fifth_of_the_rate():
    optim = OptimRecipe(schedule="cosine_7_16", warmup_steps=4)
    assert rate_factor(1, 2**20, optim) == pytest.approx(0.5)
    assert rate_factor(2**20, 2**20, optim) == pytest.approx(math.sin(math.pi / 16)) == pytest.approx(0.195, abs=1e-3)


class Two(Method):
    """Two networks, the second with an optimizer of its own."""

    def __init__(self, **own):
        super().__init__(tiny_task())
        self.one, self.two = tiny_builder(tiny_task())(), tiny_builder(tiny_task())()
        self.own = own

    def parameter_groups(self):
        return {"one": groups_of(self.one), "two": Optim(groups_of(self.two), self.own)}


def test_an_optimizer_of_its_own_differs_in_what_it_names_and_nothing_else():
    method = Two(name="adam", lr=0.5, weight_decay=0.0, betas=(0.5, 0.9))
    optim = OptimRecipe(name="sgd", lr=0.1, momentum=0.8, weight_decay=0.3, decoder_lr_scale=10)
    made = make_optimizers(method, optim, lr=0.2)  # 0.2: the recipe's rate, scaled with the batch
    assert {key: type(optimizer).__name__ for key, optimizer in made.items()} == {"one": "SGD", "two": "Adam"}
    rates = {key: [group["lr"] for group in optimizer.param_groups] for key, optimizer in made.items()}
    assert rates == {"one": [0.2, 2.0], "two": [0.5, 5.0]}
    assert {group["weight_decay"] for group in made["two"].param_groups} == {0.0}
    assert made["one"].defaults["momentum"] == 0.8
    assert made["two"].defaults["betas"] == (0.5, 0.9)
    held = {key: sum(p.numel() for g in o.param_groups for p in g["params"]) for key, o in made.items()}
    assert held["one"] == held["two"] == sum(p.numel() for p in method.one.parameters())


def test_the_recipe_has_the_last_word_and_a_resolved_one_resolves_to_itself():
    method = Two(name="adam", lr=0.5, clip_norm=50.0)
    optim = OptimRecipe(optimizers={"two": {"lr": 0.25}})
    resolved = resolve_optimizers(method, optim)
    assert resolved.optimizers == {"two": {"name": "adam", "lr": 0.25, "clip_norm": 50.0}}
    assert resolve_optimizers(method, resolved) == resolved
    assert (resolved.of("two").clip_norm, resolved.of("one").clip_norm) == (50.0, None)


def test_optimizers_that_there_are_not_are_refused():
    with pytest.raises(RecipeError, match=r"has the optimizers one, two\. Did you mean `two`\?"):
        resolve_optimizers(Two(), OptimRecipe(optimizers={"twoo": {"lr": 0.1}}))
    with pytest.raises(RecipeError, match="Two: parameter_groups"):
        resolve_optimizers(Two(name="lion"), OptimRecipe())
    with pytest.raises(RecipeError, match="learning_rate"):
        load(None, ["optim.optimizers.two.learning_rate=1"])
    with pytest.raises(RecipeError, match="cannot differ"):
        load(None, ["optim.optimizers.two.reference_batch=8"])
