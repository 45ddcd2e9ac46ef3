"""The loader of a range of steps, as a prepared run needs it."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from halfmask.data.loader import HostBatch, train_loader
from halfmask.engine.module import MakeLoader
from halfmask.engine.prepare import Prepared


def loader_maker(prepared: Prepared, out: Path) -> MakeLoader:
    """Give what makes the loader of a range of steps; decoded images are cached in `out` where the recipe asks."""
    recipe, method = prepared.recipe, prepared.method

    def make(start: int, stop: int, rank: int, world: int) -> DataLoader[HostBatch]:
        loader = train_loader(
            prepared.dataset,
            prepared.unlabeled,
            prepared.split,
            recipe.data,
            seed=recipe.run.seed,
            draws=method.draws,
            draws_share_images=method.draws_share_images,
            rank=rank,
            world=world,
            pin=torch.cuda.is_available() and recipe.run.accelerator != "cpu",
            cache=out / "cache",
            balance=prepared.balance,
        )
        loader.steps.start, loader.steps.stop = start, stop
        return loader

    return make
