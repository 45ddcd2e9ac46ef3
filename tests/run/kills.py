"""Kill a tiny training with SIGKILL at random moments, resume it, and compare it with the unbroken run.

    python -m tests.run.kills --kills 100                 one process
    python -m tests.run.kills --kills 50 --processes 2    two processes on one CPU; one of them is killed, or both

Half of the kills come while a file is being written: the disk is made slow, so that such moments are long. Some runs
are killed a second time after they were resumed. Everything is compared: every tensor of every checkpoint, the
optimizer's state, the records, the lists and the bundle. What differs is printed, and the exit code is 1.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from tests.processes import CONTEXT, group

_PATIENCE = 240.0  # seconds for a run that takes two on a machine with nothing else to do
_SLOW = 0.01  # seconds that a file takes to reach the disk

SETTINGS = (
    "model.encoder={name: 'halfmask.testing.tiny:TinyEncoder'}",
    "model.decoder={name: 'halfmask.testing.tiny:TinyDecoder'}",
    "data.batch={labeled: 4, unlabeled: 4}",
    "method.threshold=0.35",  # so low that unlabeled images teach, too
    "run.steps=9",
    "run.eval_every=3",
    "run.log_every=2",  # not in step with the checkpoints: means reach over them
)


class Tally(NamedTuple):
    """What came of the kills.

    Args:
        kills: processes, or pairs of them, that were killed.
        half_written: kills that left a file half written.
        early: kills before the first checkpoint: the run began anew.
        differences: what differs from the unbroken run, after which kills.
    """

    kills: int
    half_written: int
    early: int
    differences: list[str]


def kill_and_resume(kills: int, folder: Path, *, processes: int = 1, seed: int = 0, say: bool = False) -> Tally:
    """Kill runs of a tiny training until there were so many kills; finish each run, and compare it.

    Args:
        kills: how many.
        folder: where the data and the runs go.
        processes: of each run, 1 or 2.
        seed: of the moments.
        say: print a line for each run.
    """
    from tests.run.same import run_differences
    from tests.run.tiny import recipe, write_dataset

    random_ = random.Random(seed)
    data = write_dataset(folder / "data", images=8, masks=6, size=(48, 40))
    made = recipe(data, *SETTINGS, f"run.devices={processes}")
    (folder / "recipe.yaml").write_text(made.to_yaml())
    unbroken, run = folder / "unbroken", folder / "run"
    _finish(start(folder, unbroken, processes))  # the first start also imports everything
    began = time.monotonic()
    _finish(start(folder, run, processes))
    seconds = time.monotonic() - began
    done = half_written = early = 0
    differences = [f"not killed: {line}" for line in run_differences(unbroken, run)]
    while done < kills:
        shutil.rmtree(run, ignore_errors=True)
        moments = []
        for _ in range(min(random_.choice((1, 1, 2)), kills - done)):
            started = start(folder, run, processes)
            moments.append(_kill(started, run, random_, seconds))
            if moments[-1] == "too late: finished":
                break
            done += 1
            early += not _checkpoints(run)
            half_written += any(run.glob("**/.*.part*"))
        _finish(start(folder, run, processes))
        found = run_differences(unbroken, run)
        differences += [f"killed {', then '.join(moments)}: {line}" for line in found]
        if say:
            print(f"{done:4} of {kills} kills, {', then '.join(moments)}: {found or 'equal'}", flush=True)
    return Tally(done, half_written, early, differences)


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.glob("checkpoints/*.ckpt") if not path.name.startswith(".")]


def start(folder: Path, run: Path, processes: int) -> list[BaseProcess]:
    """Start the run, or go on with it if it has a checkpoint, as a job of a cluster does."""
    resume = bool(_checkpoints(run))
    started: list[BaseProcess] = []
    for variables in group(processes) if processes > 1 else [{}]:
        process = CONTEXT.Process(target=_train, args=(folder, run, resume, variables))
        process.start()
        started.append(process)
    return started


def _train(folder: Path, run: Path, resume: bool, variables: dict[str, str]) -> None:
    os.setsid()  # a group of its own: its loader's workers die with it
    os.environ.update(variables)
    os.dup2(os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.fsync = lambda handle: time.sleep(_SLOW)
    import torch

    from halfmask.run.train import train

    torch.set_num_threads(1)
    train(None if resume else folder / "recipe.yaml", run, resume=resume, overwrite=not resume, quiet=True)


def _kill(started: list[BaseProcess], run: Path, random_: random.Random, seconds: float) -> str:
    """Kill one or all processes of a run at a random moment; return which."""
    begun, wait = time.monotonic(), random_.uniform(0, 1.2 * seconds)
    while_writing = random_.random() < 0.5
    what = f"after {wait:.2f} s"
    time.sleep(wait)
    if while_writing:
        # Wait for the next file that is being written, then for a part of the time that it takes.
        while time.monotonic() - begun < 2 * seconds + wait and any(process.is_alive() for process in started):
            if parts := list(run.glob("**/.*.part*")):
                what = f"while writing {parts[0].name.split('.')[1]}"
                time.sleep(random_.uniform(0, _SLOW))
                break
            time.sleep(0.001)
    if all(process.exitcode == 0 for process in started):
        return "too late: finished"
    first = random_.choice([*started, None])
    for process in [first] if first is not None else started:
        end(process)
    for process in started:  # what waits in vain for the one that was killed
        process.join(random_.choice((0.0, 0.5)))
        end(process)
    return what if len(started) == 1 or first is None else f"{what}, process {started.index(first)} first"


def end(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        for kill in (os.killpg, os.kill):  # before `setsid` there is no group yet
            try:
                kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.join()


def _finish(started: list[BaseProcess]) -> None:
    for process in started:
        process.join(_PATIENCE)
    codes = [process.exitcode for process in started]
    for process in started:
        end(process)
    if codes != [0] * len(codes):
        raise RuntimeError(f"a run that nobody killed ended with {codes}; its output is in output.txt")


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="halfmask-kills-"))
    tally = kill_and_resume(chosen.kills, folder, processes=chosen.processes, seed=chosen.seed, say=True)
    print("\n".join(tally.differences))
    wrong = len({line.partition(":")[0] for line in tally.differences})
    print(
        f"{tally.kills - wrong} of {tally.kills} bit-equal with {chosen.processes} process(es); {tally.half_written} "
        f"left a file half written, {tally.early} came before the first checkpoint"
    )
    if not tally.differences:
        shutil.rmtree(folder)
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
