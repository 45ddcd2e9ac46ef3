"""Recipes: overrides, origins, and errors that name everything wrong at once."""

from pathlib import Path

import pytest
import torch
import yaml

from halfmask.errors import RecipeError
from halfmask.recipe import renamed
from halfmask.recipe.read import ModelRecipe, Recipe, load
from halfmask.run.loop.module import step_seed


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_override_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, "method: supervised\noptim: {lr: 0.5, momentum: 0.8}\n")
    recipe = load(path, ["optim.lr=1e-4", "data.split=183"])
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.power) == (1e-4, 0.8, 0.9)
    assert recipe.data.split == "183"
    assert recipe.origins["optim.lr"] == "override"
    assert recipe.origins["optim.momentum"] == f"file {path}"
    assert recipe.origins["optim.power"] == "default"


def test_all_problems_are_reported_at_once_with_cures(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "method: {name: fixmatch, treshold: 0.9}\ndata: {flip: 2, bach: {}}\nrun: {steps: many}\noptm: {}\n",
    )
    with pytest.raises(RecipeError) as caught:
        load(path, ["model.encoder.name=resent"])
    message = str(caught.value)
    assert message.startswith(f"{path}: 6 problems")
    for part in (
        "method.treshold is not a parameter of methods fixmatch. Did you mean `threshold` (float in [0, 1], default",
        "data.flip=2: input should be less than or equal to 1. Allowed: float in [0, 1], default 0.5.",
        "data.bach is not a parameter. Did you mean `batch`",
        "run.steps='many'",
        "optm is not a parameter. Did you mean `optim`",
        "there is no encoder 'resent'. Did you mean `resnet`?",
    ):
        assert part in message


def test_resolved_recipe_round_trips(tmp_path: Path) -> None:
    recipe = load({"method": {"name": "fixmatch", "threshold": 0.8}}, {"model.encoder.depth": 18})
    text = recipe.to_yaml(origins=True)
    assert "threshold: 0.8  # argument" in text
    assert "depth: 18  # override" in text
    assert "flip: 0.5  # default" in text
    again = load(write(tmp_path, text))
    assert again.model_dump() == recipe.model_dump()


def test_entries_are_filled_with_the_constructors_defaults() -> None:
    recipe = load({"method": "fixmatch"})
    assert recipe.method.params["threshold"] == 0.95
    assert recipe.model.encoder.params["depth"] == 50


def test_overriding_a_param_keeps_the_entry_and_a_new_name_drops_its_params() -> None:
    base = {"model": {"encoder": {"name": "resnet", "depth": 18}}}
    assert load(base, ["model.encoder.output_stride=8"]).model.encoder.params["depth"] == 18
    assert "depth" not in load(base, ["model.encoder=mit"]).model.encoder.params


def test_bad_values_inside_an_entry_name_the_range() -> None:
    with pytest.raises(RecipeError, match=r"method\.threshold=1\.5: .* Allowed: float in \[0, 1\], default 0\.95"):
        load({"method": {"name": "fixmatch", "threshold": 1.5}})


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "[1]"])
def test_a_value_that_fits_no_alternative_is_one_problem_with_all_ranges(value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load({}, [f"data.labeled={value}"])
    assert "1 problem\n" in str(caught.value)
    assert f"data.labeled={value} is not possible. Allowed: int in [1, inf) | float in (0, 1) | str | null" in str(
        caught.value
    )


def test_a_typo_inside_an_alternative_is_the_only_problem() -> None:
    with pytest.raises(RecipeError) as caught:
        load({}, ["data.unlabeled={root: x, lst: y}"])
    assert "1 problem\n" in str(caught.value)
    assert "data.unlabeled.lst is not a parameter. Did you mean `list`" in str(caught.value)
    with pytest.raises(RecipeError, match=r"1 problem\n.*data\.unlabeled=3 is not possible"):
        load({}, ["data.unlabeled=3"])


@pytest.mark.parametrize("text", ["optim.lr", "=3"])
def test_malformed_override_shows_the_form(text: str) -> None:
    with pytest.raises(RecipeError, match=r"key=value"):
        load({}, [text])


def test_missing_file_points_to_the_shipped_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="halfmask list recipes"):
        load(tmp_path / "none.yaml")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="given twice"):
        load(write(tmp_path, "optim: {lr: 1.0e-3, lr: 1.0e-4}\n"))


def test_yaml_exponent_without_dot_is_a_number(tmp_path: Path) -> None:
    assert load(write(tmp_path, "optim: {lr: 5e-6}\n")).optim.lr == 5e-6


def test_class_from_outside_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab.py").write_text(
        "from halfmask.method import Method\n"
        "class Mine(Method):\n"
        "    def __init__(self, task, build, *, weight: float = 2.0) -> None:\n"
        "        super().__init__(task)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = load({}, ["method.name=mylab:Mine"])
    assert recipe.method.params == {"weight": 2.0}
    with pytest.raises(RecipeError, match="cannot import nolab"):
        load({}, ["method.name=nolab:Mine"])


def test_every_default_is_valid_and_dumps() -> None:
    assert yaml.safe_load(Recipe().to_yaml())["data"]["crop"] == Recipe().data.crop


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("optim.lr=.inf", "finite.* Allowed: float in \\(0, inf\\)"),
        ("optim.lr=.nan", "optim.lr=nan"),
        ("optim.lr=1e400", "finite"),
        ("method.threshold=.inf", "method.threshold=inf"),
        ("data.dataset.range=[0, .inf]", "data.dataset.range"),
        ("data.scale=[2, 0.5]", r"must not be above the second: \[0.5, 2\]"),
        ("data.scale=[1, 1e9]", "less than or equal to 100"),
        ("data.domains={a: {scale: [2, 1]}, b: {}}", "must not be above"),
        ("eval.scales=[.inf]", r"tuple\[float in \(0, 100\]"),
        ("run.seed=99999999999999999999", r"int in \[0, 9223372036854775807\]"),
        ("run.seed=-1", r"int in \[0, 9223372036854775807\]"),
        ("data.labeled_seed=-1", r"int in \[0, 9223372036854775807\]"),
        ("run.steps=1000000000000", r"int in \[1, 100000000\]"),
        ("run.epochs=1e12", r"int in \[1, 1000000\]"),
        ("run.seed=" + "9" * 5000, "not valid YAML"),
        ("eval.window=1", r"int in \[16, 65536\]"),
        ("eval={mode: slide, window: 64, stride: 1}", r"Allowed: int in \[4, 64\]"),
        ("eval={mode: slide, stride: 400}", r"no prediction\. Allowed: int in \[20, 320\]"),
        ("data.crop=1000000", r"int in \[16, 16384\]"),
        ("data.batch.labeled=1000000000", r"int in \[1, 65536\]"),
        ("data.dataset.classes={1: a, 1: b}", "the key 1 is given twice"),
    ],
)
def test_numbers_beyond_reason_are_refused_with_the_allowed_range(override: str, allowed: str) -> None:
    with pytest.raises(RecipeError, match=allowed) as caught:
        load({}, [override])
    assert caught.value.code == "H303"


def test_the_largest_seed_draws() -> None:
    seed = load({}, [f"run.seed={2**63 - 1}"]).run.seed
    assert torch.manual_seed(seed).initial_seed() == seed
    assert step_seed(seed, 0, 7) != step_seed(seed, 0, 8)


def test_keys_of_earlier_versions_are_dropped_with_a_remark_where_they_asked_for_something(recwarn):
    model = {"decoder": {"name": "segformer", "impl": "auto"}, "bottleneck": {"name": "allspark", "impl": "stream"}}
    found = load({"run": {"steps": 3, "reference": False}, "model": model})
    assert "impl" not in found.model.decoder.params
    assert found.model.bottleneck.params["impl"] == "stream"
    assert not recwarn.list
    model = {
        "decoder": {"name": "segformer", "impl": "reference"},
        "bottleneck": {"name": "allspark", "impl": "reference"},
    }
    found = load({"run": {"steps": 3, "reference": True}, "model": model})
    assert found.model.bottleneck.params["impl"] == "auto"
    assert ["run.reference", "model.decoder.impl", "model.bottleneck.impl"] == [
        str(warning.message).partition("=")[0] for warning in recwarn.list
    ]


def test_a_model_section_of_an_earlier_bundle_is_read():
    found = ModelRecipe.model_validate({"decoder": {"name": "segformer", "impl": "auto", "dropout": 0.2}})
    assert found.decoder.params == {"dropout": 0.2}


def test_parameters_of_earlier_versions_are_read_under_their_present_names(recwarn):
    renamed._warn.cache_clear()  # each note is given once per process
    now = {"loss": {"name": "ohem", "threshold": 0.61, "min_kept": 51}}
    then = {"loss": "ohem", "ohem_threshold": 0.61, "ohem_min_kept": 51}
    assert load({"method": {"name": "cps", **then}}) == load({"method": {"name": "cps", **now}})
    assert load({"method": {"name": "cps", **then}}).method.params["loss"] == now["loss"]
    texts = [str(warning.message) for warning in recwarn]
    assert [text.partition(" ")[0] for text in texts] == ["method.ohem_threshold", "method.ohem_min_kept"]  # once
    assert "method.loss={name: ohem, min_kept: 51}" in texts[1]

    wrapped = load({"method": {"name": "multi_domain", "method": {"name": "cps", **then}}})
    assert wrapped.method.params["method"]["loss"] == now["loss"]
    overridden = load({"method": {"name": "cps", **now}}, ["method.ohem_min_kept=52"])
    assert overridden.method.params["loss"] == now["loss"] | {"min_kept": 52}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("loss", "overrides", "kept"),
    [
        ("ohem", ["loss.min_kept=9"], 9),
        ("ohem", ["loss={name: ohem, min_kept: 9}"], 9),
        ("ohem", ["loss.min_kept=9", "ohem_min_kept=8"], 8),  # the last one wins, under either name
        ("ohem", ["ohem_min_kept=8", "loss.min_kept=9"], 9),
        ("ohem", ["loss=ohem"], 7),
        ("ce", ["loss=ohem"], 7),
        ("ce", ["loss={name: ohem, min_kept: 9}"], 9),
    ],
)
def test_an_override_wins_over_a_key_of_earlier_versions(loss, overrides, kept, wrapped):
    method, prefix = {"name": "cps", "loss": loss, "ohem_min_kept": 7}, "method."
    if wrapped:
        method, prefix = {"name": "multi_domain", "method": method}, "method.method."
    found = load({"method": method}, [f"{prefix}{text}" for text in overrides])
    params = found.method.params["method"] if wrapped else found.method.params
    assert params["loss"]["min_kept"] == kept
    if "ohem_min_kept=8" in overrides and not wrapped:
        assert found.origins[f"{prefix}loss.min_kept"] == "override"


@pytest.mark.parametrize("overrides", [["method.loss.min_kept=5"], ["method.loss=ohem", "method.loss.name=ce"]])
def test_a_name_without_parameters_stands_alone(overrides) -> None:
    with pytest.raises(RecipeError, match=r"method\.loss=ce or method\.loss=\{name: ohem\}\."):
        load({"method": {"name": "cps", "loss": "ce"}}, overrides)


def test_a_loss_named_again_keeps_its_numbers() -> None:
    assert load("cps/cityscapes", ["method.loss=ohem"]).method == load("cps/cityscapes").method
    assert load("cps/cityscapes").method.params["loss"]["min_kept"] != 200_000  # the default
    wrapped = {"name": "multi_domain", "method": {"name": "cps", "loss": {"name": "ohem", "min_kept": 9}}}
    again = load({"method": wrapped}, ["method.method.loss=ohem"]).method.params["method"]
    assert again["loss"]["min_kept"] == 9
    assert load("cps/cityscapes", ["method.loss=ce"]).method.params["loss"] == "ce"


def test_parameters_of_earlier_versions_without_effect_are_dropped_in_silence(recwarn):
    # Every recipe that a run wrote held them.
    then = {"name": "cps", "loss": "ce", "ohem_threshold": 0.61, "ohem_min_kept": 51}
    assert load({"method": then}).method == load({"method": "cps"}).method
    assert not recwarn


def test_a_class_keeps_its_own_parameter_of_an_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_names.py").write_text(
        "class Mine:\n    def __init__(self, task, build, *, loss: str = 'ce', ohem_threshold: float = 0.5): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"name": "old_names:Mine", "loss": "ohem", "ohem_threshold": 0.25}
    assert load({"method": mine}).method.params == {"loss": "ohem", "ohem_threshold": 0.25}
    with pytest.raises(RecipeError, match=r"method\.ohem_min_kept is not a parameter"):
        load({"method": {"name": "cct", "ohem_min_kept": 3}})  # its loss has never had it


def test_a_loss_is_a_name_or_a_name_with_numbers() -> None:
    assert load({"method": "cps"}, ["method.loss=ohem"]).method.params["loss"]["min_kept"] == 200_000
    found = load({"method": {"name": "cps", "loss": "ohem"}}, ["method.loss.threshold=0.5"])
    assert found.method.params["loss"] == {"name": "ohem", "threshold": 0.5, "min_kept": 200_000}
    with pytest.raises(RecipeError, match=r"one of 'ce', 'ohem' \| a section with the keys name, threshold, min_kept"):
        load({"method": {"name": "cps", "loss": "focal"}})
    with pytest.raises(RecipeError, match=r"method.loss.treshold .* Did you mean `threshold`"):
        load({"method": {"name": "cps", "loss": {"name": "ohem", "treshold": 0.5}}})


def test_a_key_of_a_bare_loss_may_be_set_in_a_wrapped_method_too():
    raw = {"method": {"name": "multi_domain", "method": {"name": "cps", "loss": "ohem"}}}
    found = load(raw, ["method.method.loss.min_kept=5"])
    assert found.method.params["method"]["loss"] == {"name": "ohem", "threshold": 0.7, "min_kept": 5}
