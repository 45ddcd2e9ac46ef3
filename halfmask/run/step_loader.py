"""The loader of a range of steps, as a prepared run needs it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from halfmask.data.loading.loader import HostBatch, train_loader, turn_loader
from halfmask.run.module import MakeLoader
from halfmask.run.prepare import Prepared


def loader_maker(prepared: Prepared, out: Path) -> MakeLoader:
    """Give what makes the loader of a range of steps; decoded images are cached in `out` where the recipe asks."""
    recipe, method = prepared.recipe, prepared.method

    def make(start: int, stop: int, rank: int, world: int) -> DataLoader[HostBatch]:
        settings: dict[str, Any] = {
            "seed": recipe.run.seed,
            "draws": method.draws,
            "draws_share_images": method.draws_share_images,
            "rank": rank,
            "world": world,
            "pin": torch.cuda.is_available() and recipe.run.accelerator != "cpu",
            "cache": out / "cache",
        }
        if prepared.domains:
            shared = {"batch": recipe.data.batch, "workers": recipe.data.workers}  # trials change them
            sources = {
                name: replace(source, recipe=source.recipe.model_copy(update=shared))
                for name, source in prepared.domains.items()
            }
            loader = turn_loader(sources, **settings)
        else:
            loader = train_loader(
                prepared.dataset,
                prepared.unlabeled,
                prepared.split,
                recipe.data,
                balance=prepared.balance,
                weak=prepared.weak,
                **settings,
            )
        loader.steps.start, loader.steps.stop = start, stop
        return loader

    return make
