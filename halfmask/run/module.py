"""The only LightningModule: it drives a `Method` by manual optimization and keeps the step counter."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from halfmask.batch import Batch, Progress
from halfmask.data.loading.loader import HostBatch, to_batch
from halfmask.method import Method
from halfmask.recipe.read import OptimRecipe
from halfmask.run.optim import make_optimizers, rate_factor, set_rates

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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method, self.optim, self.lr = method, optim, lr
        self.total_steps, self.steps_per_epoch, self.seed = total_steps, steps_per_epoch, seed
        self.make_loader, self.meta = make_loader, meta
        self.step = 0
        self.validated = 0  # step of the last validation
        self.best: dict[str, float] = {}  # best validation score of each predictor
        self.best_steps: dict[str, int] = {}  # and the step it is of
        self.log_sums = LogSums()
        self.optimizer_by_key: dict[str, Optimizer] = {}

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(self.step, self.total_steps, self.steps_per_epoch)

    def configure_optimizers(self) -> list[Optimizer]:
        """Make the optimizers; rates are set by us before each step, so there is no scheduler."""
        self.optimizer_by_key = make_optimizers(self.method, self.optim, self.lr, fused=self.device.type == "cuda")
        return list(self.optimizer_by_key.values())

    def on_train_start(self) -> None:
        """Map the method's optimizer keys to Lightning's wrappers and set the first rate."""
        wrapped = self.optimizers(use_pl_optimizer=True)
        wrapped = wrapped if isinstance(wrapped, list) else [wrapped]
        self._wrapped = dict(zip(self.optimizer_by_key, wrapped, strict=True))
        set_rates(self.optimizer_by_key, rate_factor(self.step, self.total_steps, self.optim))

    def train_dataloader(self) -> DataLoader[HostBatch]:
        """Load the steps that remain; Lightning asks after a checkpoint is restored."""
        return self.make_loader(self.step, self.total_steps, self.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(self, batch: HostBatch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy uint8 to the device and make floats, masks and targets there."""
        return to_batch(batch, device, self.method.task, dtype=self._image_dtype())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the method: every update in order, then its bookkeeping."""
        torch.manual_seed(step_seed(self.seed, self.global_rank, self.step))
        for update in self.method.updates(batch, self.progress):
            optimizer = self._wrapped[update.group]
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(update.output.loss)
            if self.optim.clip_norm is not None:
                own = self.optimizer_by_key[update.group]
                self.clip_gradients(own, self.optim.clip_norm, gradient_clip_algorithm="norm")
            optimizer.step()
            self.log_sums.add({"loss": update.output.loss, **update.output.logs})
        self.method.after_update(self.progress)
        self.step += 1
        set_rates(self.optimizer_by_key, rate_factor(self.step, self.total_steps, self.optim))

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
            **self.meta,
        }

        # Lightning's counters begin anew with every start; the step says it all.
        checkpoint.pop("loops", None)
        checkpoint["global_step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the saved step."""
        self.step = checkpoint["halfmask"]["step"]
        self.validated = checkpoint["halfmask"].get("validated", self.step)
        self.best = dict(checkpoint["halfmask"]["best"])
        # Checkpoints of before have none of these.
        self.best_steps = dict(checkpoint["halfmask"].get("best_steps", {}))
        sums = checkpoint["halfmask"].get("log_sums", [])
        self.log_sums.load(sums, self.global_rank, self.trainer.world_size)
        own = checkpoint["halfmask"].get("own_buffers", [])
        if len(own) == self.trainer.world_size:  # else every process goes on with those of the first
            buffers: dict[str, Tensor] = own[self.global_rank]
            checkpoint["state_dict"] |= {f"method.{name}": buffer for name, buffer in buffers.items()}

    def _image_dtype(self) -> torch.dtype:
        return torch.float64 if str(self.trainer.precision) == "64-true" else torch.float32
