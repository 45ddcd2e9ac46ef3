"""Run the command in processes of its own, many of them: forked from one that has imported everything already."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["halfmask.cli.app", "halfmask.run.fit", "halfmask.infer.evaluate", "timm"])


@dataclass(frozen=True)
class Done:
    """What a finished process left."""

    code: int
    out: str
    err: str


def run(folder: Path, *arguments: str, limit: float = 300.0) -> Done:
    """Run `halfmask ARGUMENTS` in a folder."""
    streams = folder / ".stdout", folder / ".stderr"
    process = _CONTEXT.Process(target=_child, args=(folder, arguments, streams))
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"halfmask {' '.join(arguments)}")
    out, err = (path.read_text() for path in streams)
    for path in streams:
        path.unlink()
    return Done(process.exitcode, out, err)


def _child(folder: Path, arguments: tuple[str, ...], streams: tuple[Path, Path]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.chdir(folder)
    sys.argv = ["halfmask", *arguments]
    from halfmask.cli import main

    main()
