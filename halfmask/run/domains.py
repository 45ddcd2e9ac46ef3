"""Train over several domains in turns. Only this file knows of them; other code sees one method and one `Sources`.

Each domain is opened and checked like a run of its own, then all share a method (`halfmask.method.DomainMethod`). Each
is validated by its own network on its own images; the mean of all chooses the checkpoint.
"""

import json
import os
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from halfmask.atomic import write_text
from halfmask.data.folder.class_lines import named_in_file
from halfmask.data.folder.files import ids_of
from halfmask.data.loading.loader import Source, TrainLoader, turn_loader
from halfmask.data.loading.sampler import steps_per_epoch
from halfmask.data.splits import split as splits
from halfmask.data.splits.verify import default_folder
from halfmask.errors import DataError, RecipeError, ShapeError, bullet_list
from halfmask.infer.bundle import save_bundle
from halfmask.infer.domains import DOMAINS
from halfmask.method import DomainMethod, Method
from halfmask.models.build import Builder
from halfmask.plugins import arguments, names, resolve
from halfmask.progress import looking_at_files
from halfmask.recipe.read import WHICH_FILES, DataRecipe, Entry, Recipe
from halfmask.run.folder import RunDir, describe_split
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.optim import with_optimizers
from halfmask.run.loop.trainer import with_precision
from halfmask.run.loop.validation import Evaluate, Examination, Examiner, origin_of
from halfmask.run.prepared import (
    Prepared,
    RareClasses,
    balance_classes,
    check_crop,
    check_pairing,
    check_shares,
    check_task,
    lengths,
)
from halfmask.run.sources import Sources, evaluator_of, validated_ids

_Made = TypeVar("_Made")

# What a run writes, and what metrics are named after, beside the domains.
_TAKEN = frozenset("tb checkpoints cache predictions report twin control miou iou acc val test mean".split())


def domain_recipe(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of one domain: its own data, the wrapped method, what is published of it."""
    domains = recipe.data.domains or {}
    own = domains[name]
    section = {key: getattr(own, key) for key in WHICH_FILES} | {"domains": None}
    section |= {key: value for key in ("crop", "scale") if (value := getattr(own, key)) is not None}
    cls = resolve("methods", recipe.method.name)
    method = Entry.model_validate(cls.of_each(recipe.method.params))
    expected = recipe.expected.of_domain(name) if recipe.expected else None
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update=section), "method": method, "expected": expected}
    )


def prepare_domains(recipe: Recipe, limit: int | None, *, look: bool, quiet: bool) -> Prepared:
    """Open every domain, build one method for all, and check that they fit; arguments and errors as of `prepare`."""
    cls = resolve("methods", recipe.method.name)
    if recipe.run.precise_bn:
        raise RecipeError("run.precise_bn does not work over several domains: leave it out (run.precise_bn=0).")
    if recipe.data.domains is None:
        raise RecipeError(
            f"method {recipe.method.name} learns from several datasets, but data.domains names none. Name them: "
            "data.domains={NAME: {root: DIR}, OTHER: {root: DIR}}; or train on one: "
            f"method.name={cls.of_each(recipe.method.params)['name']}."
        )
    _check_names(recipe)
    if not issubclass(cls, DomainMethod):
        wrapping = next(name for name in names("methods") if issubclass(resolve("methods", name), DomainMethod))
        raise RecipeError(
            f"method {recipe.method.name} learns from one dataset, but data.domains names "
            f"{len(recipe.data.domains)}. Wrap it: method={{name: {wrapping}, method: {recipe.method.name}}}."
        )
    recipes = {name: domain_recipe(recipe, name) for name in recipe.data.domains or {}}
    opened = _for_each(recipes, lambda _, own: _open(own.data))
    method = _build(cls, recipe, recipes, opened)
    recipe = with_precision(recipe, method)
    world = recipe.run.devices * recipe.run.nodes

    def check(name: str, own: Recipe) -> tuple[Source, RareClasses]:
        return _checked(method.of(name), own, opened[name], world)

    checked = _for_each(recipes, check)
    domains = {name: source for name, (source, _) in checked.items()}
    weights = {name: one for name, (_, rare) in checked.items() for one in [rare.weights] if one is not None}
    per_epoch = len(domains) * max(_passes(source, method.draws) for source in domains.values())
    total, every = lengths(recipe, per_epoch, limit)
    warnings = [
        f"{name}: {_of_domain(name, remark)}" for name, source in domains.items() for remark in source.split.remarks
    ]
    if recipe.eval.select_on == "val":
        warnings += [
            f"{name}: no validation images, so this domain does not count where the best checkpoint is chosen. Name "
            f"some with data.domains.{name}.val."
            for name, source in domains.items()
            if not source.split.val and source.recipe.val != "none"
        ]
    if look:

        def look_at(name: str, own: Recipe) -> tuple[str, ...]:
            source = domains[name]
            with looking_at_files(quiet) as on_file:
                return splits.verify(
                    source.dataset, source.split, source.unlabeled, stamps=default_folder(), on_file=on_file
                )

        found = _for_each(recipes, look_at)
        warnings += [f"{name}: {_of_domain(name, warning)}" for name, some in found.items() for warning in some]
    first = next(iter(domains.values()))
    return Prepared(
        with_optimizers(recipe, method), first.dataset, first.unlabeled, first.split, method, per_epoch, total, every,
        tuple(warnings), first.balance, sources=Domains(domains), class_weights=weights,
    )  # fmt: skip


def _check_names(recipe: Recipe) -> None:
    """Refuse domains that cannot be told apart, and keys that belong to a single dataset."""
    domains = recipe.data.domains or {}
    problems = []
    given = [f"data.{key}" for key in WHICH_FILES if getattr(recipe.data, key) != getattr(DataRecipe(), key)]
    given = [key for key in given if key != "data.dataset" or recipe.data.dataset.name != "folder"]
    if given:
        first = next(iter(domains))
        problems.append(
            f"{', '.join(given)} would be of a single dataset; with data.domains each domain has its own: "
            f"{given[0].replace('data.', f'data.domains.{first}.')}"
        )
    if recipe.data.weak is not None:
        problems.append("data.weak is of a single dataset: leave it out, or train on that dataset alone")
    names: dict[str, str] = {}
    roots: dict[str, str] = {}
    for name, own in domains.items():
        if (other := names.setdefault(name.lower(), name)) != name:
            problems.append(f"domains {other} and {name} have the same name on some file systems: rename one")
        if name.lower() in _TAKEN:
            problems.append(f"domain {name} is named like a part of the run's files or metrics: rename it")
        if own.root is None:
            problems.append(f"domain {name} has no data: give its folder with data.domains.{name}.root=DIR")
        elif (other := roots.setdefault(os.path.realpath(own.root), name)) != name:
            problems.append(
                f"domains {other} and {name} have the same root {own.root}: two domains are two datasets. Leave one "
                "out, or correct its root"
            )
    if problems:
        raise RecipeError(f"data.domains cannot be used:\n{bullet_list(problems)}")


def _for_each(recipes: Mapping[str, Recipe], make: Callable[[str, Recipe], _Made]) -> dict[str, _Made]:
    """Call a function for each domain; problems come in one error, of the kind of the first, that names the domains."""
    made: dict[str, _Made] = {}
    problems: dict[str, Any] = {}
    for name, own in recipes.items():
        try:
            made[name] = make(name, own)
        except (RecipeError, ShapeError, DataError) as error:
            problems[name] = error
    if not problems:
        return made
    first = next(iter(problems.values()))
    text = "\n".join(f"domain {name}: {_of_domain(name, str(error))}" for name, error in problems.items())
    raise type(first)(text, first.code)


def _of_domain(name: str, text: str) -> str:
    """Rename the keys of a single dataset to keys of a domain.

    >>> _of_domain("a", "use data.val=none or data.crop=32")
    'use data.domains.a.val=none or data.crop=32'
    """
    return re.sub(rf"\bdata\.({'|'.join(WHICH_FILES)})\b", rf"data.domains.{name}.\1", text)


def _open(data: DataRecipe) -> Source:
    dataset = splits.open_dataset(data)
    split = splits.resolve_split(data, dataset)
    _check_label_space(data, Source(data, dataset, None, split))
    return Source(data, dataset, splits.unlabeled_dataset(data, dataset), split)


def _check_label_space(data: DataRecipe, source: Source) -> None:
    """Refuse classes that are not those of the class file beside the images: the heads would mean something else."""
    said = named_in_file(source.dataset.root)
    mapped = data.dataset.params.get("map") or data.dataset.params.get("binary")
    if said is None or mapped:
        return
    path, theirs = said
    ours = source.dataset.task.classes
    if [name.lower() for name in ours] == [name.lower() for name in theirs]:
        return
    odd = next((pair for pair in zip(ours, theirs, strict=False) if pair[0].lower() != pair[1].lower()), None)
    where = f"the first that differs: {odd[0]} against {odd[1]}" if odd else "the rest is missing on one side"
    raise DataError(
        f"the label space contradicts {path}: {len(ours)} classes by data.domains and dataset {data.dataset.name}, "
        f"{len(theirs)} in the file; {where}. Correct the file or the classes, or say how they belong together with "
        "`map`.",
        "H209",
    )


def _build(
    cls: type[DomainMethod], recipe: Recipe, recipes: Mapping[str, Recipe], opened: Mapping[str, Source]
) -> DomainMethod:
    """Build the method of all domains, the networks seeded like those of a run of one domain."""
    datasets = {name: source.dataset for name, source in opened.items()}
    for what, values in (
        ("kinds of task", {name: dataset.task.kind for name, dataset in datasets.items()}),
        ("numbers of bands", {name: dataset.channels for name, dataset in datasets.items()}),
        ("main scores", {name: dataset.task.main_metric for name, dataset in datasets.items()}),
    ):
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise RecipeError(
                f"domains share one encoder and one main score, but differ in their {what} ({listed}). "
                "Bring them to the same, or train them apart."
            )
    for name, own in recipes.items():
        wrapped = resolve("methods", own.method.name)
        if len(wrapped.plan(own)) > 1:
            raise RecipeError(f"method {own.method.name} trains in stages; several domains need a method of one stage.")
        check_task(wrapped, own, datasets[name].task.kind)
        check_pairing(wrapped, own)
    torch.manual_seed(recipe.run.seed)
    builders = {
        name: Builder(
            own.model,
            datasets[name].task,
            crop=own.data.crop,
            channels=datasets[name].channels,
            mean=datasets[name].mean,
            std=datasets[name].std,
        )
        for name, own in recipes.items()
    }
    tasks = {name: dataset.task for name, dataset in datasets.items()}
    made: type[Any] = cls  # which parameters it has is its own affair
    method: DomainMethod = made(tasks, builders, **arguments(cls, recipe.method.params))
    return method


def _checked(method: Method, recipe: Recipe, source: Source, world: int) -> tuple[Source, RareClasses]:
    """Check one domain against its method, and attend to its rare classes."""
    check_crop(method, recipe)
    if method.draws and not source.split.unlabeled:
        raise DataError(
            f"method {recipe.method.name} learns from unlabeled images and there are none: every image has a mask in "
            "use. Use fewer masks (labeled), name others (unlabeled), or wrap method supervised.",
            "H210",
        )
    check_shares(method, recipe, source.split, world)
    rare = balance_classes(method, recipe, source.dataset, source.split)
    unlabeled = source.unlabeled if method.draws else None
    return Source(source.recipe, source.dataset, unlabeled, source.split, rare.balance), rare


def _passes(source: Source, draws: int) -> int:
    """Return the steps of one pass over a domain."""
    data, split = source.recipe, source.split
    length, batch = (split.unlabeled, data.batch.unlabeled) if draws else (split.labeled, data.batch.labeled)
    return steps_per_epoch(len(length), batch, drop_last=data.drop_last)


class Domains(Sources):
    """Several datasets that take turns, step by step.

    Args:
        by_name: every domain, in the order of the turns.
    """

    def __init__(self, by_name: Mapping[str, Source]) -> None:
        self.by_name = dict(by_name)

    def describe(self) -> str:
        """Say what each domain brings."""
        wide = max(map(len, self.by_name))
        lines = []
        for name, source in self.by_name.items():
            split = source.split
            lines.append(
                f"{name:{wide}}  {len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, {len(split.val)} "
                f"validation image{'s' * (len(split.val) != 1)}, {source.dataset.task.n_classes} classes"
            )
        return "\n         ".join(lines)

    def classes(self) -> list[str]:
        """List the classes of all domains, under the names of these."""
        return [f"{name}/{label}" for name, source in self.by_name.items() for label in source.dataset.task.classes]

    def lists(self) -> dict[str, Any]:
        """Return the lists of all domains, under the names of these."""
        return {
            f"{name}/{part}": entry
            for name, source in self.by_name.items()
            for part, entry in describe_split(source.split).items()
        }

    def loader(self, recipe: DataRecipe, **settings: Any) -> TrainLoader:
        """Build the loader of all domains in turns."""
        shared = {"batch": recipe.batch, "workers": recipe.workers}
        sources = {
            name: replace(source, recipe=source.recipe.model_copy(update=shared))
            for name, source in self.by_name.items()
        }
        return turn_loader(sources, **settings)

    def examiner(self, recipe: Recipe) -> Examiner:
        """Build what scores the networks of every domain that has images to validate on."""
        whole = [(name, domain_recipe(recipe, name), source) for name, source in self.by_name.items()]
        images = sum(len(validated_ids(own, source.dataset, source.split)) for _, own, source in whole)
        found = {name: evaluator_of(own, source.dataset, source.split) for name, own, source in whole}
        return DomainExaminer(self.by_name, {name: one for name, one in found.items() if one is not None}, images)

    def write(self, run: RunDir, recipe: Recipe) -> None:
        """Write what the folder of each domain holds beside its bundle: data and protocol, and its lists."""
        write_text(run.path / DOMAINS, json.dumps(list(self.by_name)) + "\n")
        for name, source in self.by_name.items():
            part = RunDir(run.path / name)
            part.path.mkdir(parents=True, exist_ok=True)
            write_text(part.recipe, domain_recipe(recipe, name).to_yaml())
            write_text(part.split, json.dumps(describe_split(source.split), indent=1) + "\n")


class DomainExaminer:
    """Scores the networks of every domain.

    Args:
        domains: all of them, by name.
        evaluators: of each domain that has images to validate on.
        images: to validate on, of all domains together.
    """

    def __init__(self, domains: Mapping[str, Source], evaluators: Mapping[str, Evaluate], images: int) -> None:
        self.domains, self.evaluators = domains, dict(evaluators)
        first = next(iter(domains.values()))
        self.main_metric, self.images = first.dataset.task.main_metric, images

    def examine(self, module: LitMethod, rank: int, world: int) -> Examination:
        """Score as `val/<domain>/<score>`; `val/<main score>`, the mean over the domains, chooses the best."""
        method = module.method
        assert isinstance(method, DomainMethod)
        values: dict[str, float] = {}
        main: dict[str, float] = {}
        for name in method.of(method.names[0]).predictors():
            of_domains: list[float] = []
            for domain, evaluate in self.evaluators.items():
                found = evaluate(method.of(domain).predictors()[name], rank, world)
                scores = found.to_dict()
                values |= {f"{name}/val/{domain}/{key}": value for key, value in scores.items()}
                values |= {} if main else {f"val/{domain}/{key}": value for key, value in scores.items()}
                of_domains.append(found.main[1])
            mean = statistics.mean(of_domains)
            values |= {f"{name}/val/{self.main_metric}": mean} | ({} if main else {f"val/{self.main_metric}": mean})
            main[name] = mean
        return Examination(values, main)

    def ship(self, module: LitMethod, folder: Path, name: str | None, score: dict[str, float]) -> None:
        """Write a bundle of each domain into the folder of its name."""
        method = module.method
        assert isinstance(method, DomainMethod)
        for domain, source in self.domains.items():
            predictors, dataset = method.of(domain).predictors(), source.dataset
            name = name or next(iter(predictors))
            kept = {"domain": domain, "range": dataset.value_range, "nodata": dataset.nodata, "ids": ids_of(dataset)}
            extra = origin_of(module, name) | kept | {f"mean_{key}": value for key, value in score.items()}
            save_bundle(folder / domain, predictors[name], dataset.task, extra=extra)
