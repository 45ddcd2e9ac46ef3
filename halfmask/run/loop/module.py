"""The only LightningModule: it drives a `Method` by manual optimization and keeps the step counter."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from halfmask.batch import Batch, Progress
from halfmask.data.loading.loader import HostBatch, TrainLoader, to_batch
from halfmask.errors import CheckpointError
from halfmask.method import Method
from halfmask.recipe.read import OptimRecipe
from halfmask.run.loop.average import WeightAverage
from halfmask.run.loop.eager import without_compiler
from halfmask.run.loop.finite import FiniteGuard
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.optim import make_optimizers, rate_factor, resolve_optimizers, set_rates

T = TypeVar("T")
CHECKPOINT_FORMAT = 1
MakeLoader = Callable[[int, int, int, int], DataLoader[HostBatch]]  # start, stop, rank, world


def step_seed(seed: int, rank: int, step: int) -> int:
    """Mix run seed, rank and step into the seed of one step's device-side draws.

    >>> step_seed(0, 0, 1) != step_seed(0, 1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


class LogSums:
    """Sums of logged device tensors; the host reads them once per `log_every` steps.

    They are part of a checkpoint: the first record of a resumed run is then the mean of the same steps.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Add one step's values, without any host synchronization.

        NaN means "no value in this step" (a class that did not occur), except in losses, where it must be seen.
        """
        for name, value in logs.items():
            value = value.detach().double() if value.device.type == "cpu" else value.detach().float()
            known = torch.ones_like(value) if "loss" in name else (~value.isnan()).to(value.dtype)
            value = torch.where(known > 0, value, 0)
            total, count = self._sums.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
            # Sums of a checkpoint come from the CPU.
            self._sums[name] = (total.to(value.device) + value, count.to(value.device) + known)

    def read(self, reduce: Callable[[Tensor], Any] | None = None) -> dict[str, list[float]]:
        """Return the means since the last call and start anew; NaN where no step had a value.

        Args:
            reduce: adds a tensor up over the processes of a run.
        """
        means = {}
        for name, sums in self._sums.items():
            total, count = sums if reduce is None else reduce(torch.stack(sums))
            means[name] = (total / count).reshape(-1).tolist()
        self._sums = {}
        return means

    def state(self) -> list[dict[str, Tensor]]:
        """Return the sums of every process; each must call it."""
        return _of_all_ranks({name: torch.stack(sums).cpu() for name, sums in self._sums.items()})

    def load(self, state: Sequence[Mapping[str, Tensor]], rank: int, world: int) -> None:
        """Continue with saved sums; of another number of processes, the first one takes those of all.

        Args:
            state: what `state` gave, or nothing.
            rank: of this process.
            world: number of processes now.
        """
        mine = [state[rank]] if len(state) == world else state if rank == 0 else []
        self._sums = {}
        for sums in mine:
            for name, (total, count) in sums.items():
                before = self._sums.get(name, (torch.zeros_like(total), torch.zeros_like(count)))
                self._sums[name] = (before[0] + total, before[1] + count)


def own_buffers(method: Method) -> list[dict[str, Tensor]]:
    """Return the buffers that differ between the processes of a run, of each process; every one must call it.

    Batch statistics without synchronization differ, and memories that are not shared.
    """
    kept = method.state_dict().keys()
    buffers = {name: buffer.detach().cpu() for name, buffer in method.named_buffers() if name in kept}
    digests = {name: hashlib.sha256(_bytes(buffer)).hexdigest() for name, buffer in buffers.items()}
    others = _of_all_ranks(digests)
    differing = [name for name in digests if any(other[name] != digests[name] for other in others)]
    return _of_all_ranks({name: buffers[name] for name in differing})


def _bytes(buffer: Tensor) -> bytes:
    return buffer.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if buffer.numel() else b""


def _of_all_ranks(own: T) -> list[T]:
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


class EpochLoader:
    """Loads epoch by epoch, so that each is drawn with the chances of the classes that hold at its start.

    Args:
        loader: of all steps that remain.
        module: says how often each class is drawn.
    """

    def __init__(self, loader: DataLoader[HostBatch], module: "LitMethod") -> None:
        assert isinstance(loader, TrainLoader)
        self.loader, self.module = loader, module
        self.first, self.stop = loader.steps.start, loader.steps.stop

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[HostBatch]:
        steps, start = self.loader.steps, self.first
        while start < self.stop:
            epoch = start // self.module.steps_per_epoch
            steps.start, steps.stop = start, min((epoch + 1) * self.module.steps_per_epoch, self.stop)
            steps.weigh(self.module.sampling)
            start = steps.stop
            yield from self.loader


class LitMethod(L.LightningModule):
    """Runs a method's updates; own step counter because Lightning counts optimizer steps.

    Args:
        method: the method.
        optim: optimizer section of the recipe.
        lr: base learning rate after batch scaling.
        total_steps: steps of the run.
        steps_per_epoch: for `Progress.epoch`.
        seed: of the run.
        make_loader: gives the loader of the steps from `start` to `stop` for one rank of `world`.
        meta: plain data written into every checkpoint (recipe, classes, split hashes).
        class_weights: for `Batch.class_weights`, by the name of the domain ("" where there is one dataset).
    """

    def __init__(
        self,
        method: Method,
        optim: OptimRecipe,
        *,
        lr: float,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        make_loader: MakeLoader,
        meta: dict[str, Any],
        class_weights: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method, self.optim, self.lr = method, optim, lr
        self.total_steps, self.steps_per_epoch, self.seed = total_steps, steps_per_epoch, seed
        self.make_loader, self.meta, self.class_weights = make_loader, meta, dict(class_weights)
        self.step = 0
        self.validated = 0  # step of the last validation
        self.best: dict[str, float] = {}  # best validation score of each predictor
        self.best_steps: dict[str, int] = {}  # and the step it is of
        self.statistics: dict[str, dict[str, Tensor]] = {}  # of batch norm that the last validation used, by predictor
        self.average: WeightAverage | None = None  # of the last part of the run, where that is what is shipped
        self.log_sums = LogSums()
        self.sampling: list[float] | None = None  # chances of the classes in this epoch, where the method gives them
        self.guard = FiniteGuard(method)
        self.optimizer_by_key: dict[str, Optimizer] = {}
        self.sections: dict[str, OptimRecipe] = {}  # of each optimizer

    @property
    def progress(self) -> Progress:
        """Progress of the run: step, epoch, and what a method may ask of both."""
        return Progress(self.step, self.total_steps, self.steps_per_epoch)

    def configure_optimizers(self) -> list[Optimizer]:
        """Make the optimizers; rates are set by us before each step, so there is no scheduler."""
        resolved = resolve_optimizers(self.method, self.optim)
        self.sections = {key: resolved.of(key) for key in self.method.parameter_groups()}
        self.optimizer_by_key = make_optimizers(
            self.method, self.optim, self.lr, fused=self.device.type in {"cpu", "cuda"}
        )
        return list(self.optimizer_by_key.values())

    def on_train_start(self) -> None:
        """Map the method's optimizer keys to Lightning's wrappers and set the first rate."""
        wrapped = self.optimizers(use_pl_optimizer=True)
        wrapped = wrapped if isinstance(wrapped, list) else [wrapped]
        self._wrapped = dict(zip(self.optimizer_by_key, wrapped, strict=True))
        self.guard.begin(self.device)
        self._set_rates()

    def train_dataloader(self) -> "DataLoader[HostBatch] | EpochLoader":
        """Load the steps that remain; Lightning asks after a checkpoint is restored."""
        loader = self.make_loader(self.step, self.total_steps, self.global_rank, self.trainer.world_size)
        if self.sampling is None:
            self._read_sampling()
        return loader if self.sampling is None else EpochLoader(loader, self)

    def transfer_batch_to_device(self, batch: HostBatch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy uint8 to the device and make floats, masks and targets there."""
        weights = self.class_weights.get(batch.domain)
        if weights is not None and weights.device != device:
            weights = self.class_weights[batch.domain] = weights.to(device)
        dtype = torch.float64 if str(self.trainer.precision) == "64-true" else torch.float32
        return to_batch(batch, device, self.method.task, dtype=dtype, class_weights=weights)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run one step of the method: every update in order, then its bookkeeping."""
        torch.manual_seed(step_seed(self.seed, self.global_rank, self.step))
        for update in self.method.updates(batch, self.progress):
            optimizer = self._wrapped[update.group]
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(update.output.loss)
            clip_norm = self.sections[update.group].clip_norm
            if clip_norm is not None:
                own = self.optimizer_by_key[update.group]
                self.clip_gradients(own, clip_norm, gradient_clip_algorithm="norm")
            if not self.guard.allows(update.output.loss, self.optimizer_by_key[update.group], self.step):
                return  # StopAtInfinity ends the run
            with without_compiler():
                optimizer.step()
            self.log_sums.add({"loss": update.output.loss, **update.output.logs})
        self.method.after_update(self.progress)
        self.step += 1
        self._set_rates()
        if self.step % self.steps_per_epoch == 0:
            self._read_sampling()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes a run continue; only tensors and plain types."""
        checkpoint["halfmask"] = {
            "format": CHECKPOINT_FORMAT,
            "step": self.step,
            "validated": self.validated,
            "best": dict(self.best),
            "best_steps": dict(self.best_steps),
            "log_sums": self.log_sums.state(),
            "own_buffers": own_buffers(self.method),
            "optimizers": list(self.optimizer_by_key),
            "sampling": self.sampling,
            **self.meta,
        }
        if self.statistics and self.validated == self.step:
            checkpoint["halfmask"]["statistics"] = self.statistics
        if self.average is not None and (state := self.average.state())["count"]:
            ends = self.validated == self.step == self.total_steps
            checkpoint["halfmask"]["average"] = {**state, "shipped": ends}

        # Lightning's counters begin anew with every start; the step says it all.
        checkpoint.pop("loops", None)
        checkpoint["global_step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the saved step."""
        self.step = checkpoint["halfmask"]["step"]
        own = list(self.method.parameter_groups())
        keys = checkpoint["halfmask"].get("optimizers", own)  # checkpoints of before do not name them
        if keys != own:
            raise CheckpointError(
                f"the checkpoint was written with the optimizers {', '.join(keys)}, the method now has "
                f"{', '.join(own)}. Use the version of the method that the run began with.",
                "H405",
            )
        self.validated = checkpoint["halfmask"].get("validated", self.step)
        self.best = dict(checkpoint["halfmask"]["best"])
        # Checkpoints of before have none of these.
        self.sampling = checkpoint["halfmask"].get("sampling")
        self.best_steps = dict(checkpoint["halfmask"].get("best_steps", {}))
        if self.average is not None and "average" in checkpoint["halfmask"]:
            self.average.load(checkpoint["halfmask"]["average"])
        sums = checkpoint["halfmask"].get("log_sums", [])
        self.log_sums.load(sums, self.global_rank, self.trainer.world_size)
        own = checkpoint["halfmask"].get("own_buffers", [])
        if len(own) == self.trainer.world_size:  # else every process goes on with those of the first
            buffers: dict[str, Tensor] = own[self.global_rank]
            checkpoint["state_dict"] |= {f"method.{name}": buffer for name, buffer in buffers.items()}

    def _read_sampling(self) -> None:
        """Ask the method how often each class is to be drawn in the epoch that begins; all processes take the mean."""
        wanted = self.method.class_weights_for_sampling()
        if wanted is not None:
            mean = self.trainer.strategy.reduce(wanted.detach().clone(), reduce_op="mean")
            assert isinstance(mean, Tensor)
            self.sampling = mean.tolist()

    def _set_rates(self) -> None:
        for key, optimizer in self.optimizer_by_key.items():
            set_rates({key: optimizer}, rate_factor(self.step, self.total_steps, self.sections[key]))
