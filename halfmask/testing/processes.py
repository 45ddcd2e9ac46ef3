"""`check_two_processes`: does a method stay one method when two processes train it?

    from halfmask.testing import check_two_processes
    from mylab.method import MyMethod

    if __name__ == "__main__":
        check_two_processes(MyMethod)

Each process sees its own part of the data and draws its own random numbers. After every update the gradients are
averaged, as in training. Then whatever training changes (networks, teachers, queues, counters) must be the same in
both: what ranks share beyond gradients is up to the method (`halfmask.teaching.dist`).
"""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from halfmask.batch import Progress
from halfmask.infer.devices import import_before_groups
from halfmask.method import Method, optimizers_of
from halfmask.plugins import arguments
from halfmask.testing.tiny import tiny_batch, tiny_builder, tiny_task

Case = type[Method] | tuple[type[Method], dict[str, Any]]

_STEPS, _WORLD = 3, 2
_PATIENCE = timedelta(seconds=60)


def check_two_processes(*cases: Case) -> None:
    """Train each method in two processes for a few steps, on networks without batch statistics.

    Starting the processes takes longer than training in them: check several methods in one call.

    Args:
        cases: a method, or a method and its constructor arguments; importable by their names.

    Raises:
        AssertionError: for each method that fails, what differs between the processes, or what went wrong in one.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A server that is running and has the libraries loaded starts them at once.
        kinds = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        processes = [context.Process(target=_rank, args=(rank, Path(folder), cases)) for rank in range(_WORLD)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = [(Path(folder) / f"{rank}.txt") for rank in range(_WORLD)]
        # A process that has said what it found is done; how gloo's threads end after that says nothing about methods.
        silent = [process.exitcode for process, path in zip(processes, found, strict=True) if not path.exists()]
        lines = {line: None for path in found if path.exists() for line in path.read_text().split("\0") if line}
    if silent and not lines:
        raise AssertionError(f"processes ended with exit codes {silent} and no result; their output says more.")
    if lines:
        raise AssertionError("\n".join(lines))


def _rank(rank: int, folder: Path, cases: Sequence[Case]) -> None:
    torch.set_num_threads(1)
    import_before_groups()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=_WORLD, timeout=_PATIENCE
    )
    findings: list[str] = []
    for case in cases:
        cls, params = case if isinstance(case, tuple) else (case, {})
        title = cls.__name__ + (f"({params})" if params else "")
        try:
            findings += [f"{title}: {line}" for line in _differences(_train(cls, params, rank))]
        except Exception:
            # The other process waits for this one: nothing after it can be checked.
            findings.append(
                f"{title}: process {rank} failed, or waited in vain for the other.\n{traceback.format_exc()}"
            )
            break
    part = folder / f"{rank}.part"
    part.write_text("\0".join(findings))
    part.rename(folder / f"{rank}.txt")
    dist.destroy_process_group()


def _train(cls: type[Method], params: dict[str, Any], rank: int) -> nn.Module:
    torch.manual_seed(1)
    task = tiny_task(next(kind for kind in ("segmentation", "change", "classification") if kind in cls.tasks))
    make: Callable[..., Method] = cls
    method = make(task, tiny_builder(task, norm=False), **arguments(cls, params)).train()
    optimizers = {
        key: torch.optim.SGD([p for group in found.groups for p in group.params], lr=0.05, momentum=0.9)
        for key, found in optimizers_of(method).items()
    }
    for step in range(_STEPS):
        progress = Progress(step, _STEPS, 2)
        seed = _WORLD * step + rank
        batch = tiny_batch(task, draws=method.draws, share_images=method.draws_share_images, seed=seed)
        torch.manual_seed(1000 + seed)
        for update in method.updates(batch, progress):
            optimizers[update.group].zero_grad(set_to_none=True)
            update.output.loss.backward()
            _average_gradients(optimizers[update.group])
            optimizers[update.group].step()
        method.after_update(progress)
    return method


def _average_gradients(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(grad)
            parameter.grad = grad / _WORLD


def _differences(method: nn.Module) -> list[str]:
    odd = []
    # Statistics of batch norm are taken over each process's own images, unless the engine makes them common.
    own = {
        f"{name}.{buffer}"
        for name, module in method.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }
    for name, tensor in method.state_dict().items():
        if name in own:
            continue
        parts: list[Tensor] = [torch.empty_like(tensor) for _ in range(_WORLD)]
        dist.all_gather(parts, tensor.contiguous())
        if not all(torch.equal(parts[0], part) for part in parts[1:]):
            odd.append(name)
        elif tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            odd.append(f"{name} (not finite)")
    if not odd:
        return []
    return [
        f"two processes differ in {odd[:5]}. Share what is not a gradient with halfmask.teaching.dist (gather, "
        "broadcast), or derive it from `progress`."
    ]
