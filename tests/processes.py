"""Run commands and functions in processes of their own, many of them: forked from one that has imported everything.

run(folder, "train", "recipe.yaml")            the command line
run_group(folder, "evaluate", "run")           the same in two processes that form a group, as torchrun makes it
in_two_processes(check)                        a function, with each rank
with command_in(folder): ...                   a `halfmask` for scripts of a shell
"""

import json
import multiprocessing
import os
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["halfmask.cli.app", "halfmask.run.fit", "halfmask.infer.evaluate", "halfmask.testing.tiny", "timm"]
)


@dataclass(frozen=True)
class Done:
    """What a finished process left."""

    code: int
    out: str
    err: str


class Started:
    """A function that runs in a process of its own; what it prints goes to files.

    Args:
        function: importable, as its arguments are.
        arguments: passed to it.
        environment: variables that its process has beside those of this one.
    """

    def __init__(self, function: Callable[..., None], *arguments: object, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.streams = Path(self.folder.name, "out"), Path(self.folder.name, "err")
        self.process: BaseProcess = CONTEXT.Process(
            target=_begin, args=(self.streams, environment, function, arguments)
        )
        self.process.start()

    def wait(self, limit: float = 300.0) -> Done:
        """Wait for its end, so many seconds at most."""
        self.process.join(limit)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.process}\n{self.streams[1].read_text()}")
        out, err = (path.read_text() for path in self.streams)
        self.folder.cleanup()
        return Done(self.process.exitcode, out, err)


def wait_for_all(started: list[Started], limit: float = 300.0) -> list[Done]:
    """Wait for the processes of a group; where one fails, those that would wait for it in vain are ended."""
    waiting = {one.process.sentinel: one.process for one in started}
    end = time.monotonic() + limit
    while waiting and (ended := wait(list(waiting), max(end - time.monotonic(), 0))):
        failed = [process for process in map(waiting.pop, ended) if process.exitcode]
        if failed and waiting:
            end = min(end, time.monotonic() + 20)  # in which they may say what they miss
    for process in waiting.values():
        process.kill()
    return [one.wait() for one in started]


def _begin(
    streams: tuple[Path, Path],
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    function(*arguments)


def _command(folder: Path, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    sys.argv = [str(Path(sys.executable).with_name("halfmask")), *arguments]  # which a trainer calls for more processes
    from halfmask.cli import main

    main()


def run(folder: Path, *arguments: str, limit: float = 300.0) -> Done:
    """Run `halfmask ARGUMENTS` in a folder."""
    return Started(_command, folder, arguments).wait(limit)


def _command_of_shell(folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Run the command with the variables of the shell that called it, and find what its script would find."""
    os.environ.clear()
    os.environ.update(environment)
    given = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    known = [entry for entry in sys.path if "site-packages" in entry or entry.startswith((sys.base_prefix, _ROOT))]
    sys.path[:] = [*(str((folder / entry).resolve()) for entry in given), *known]
    _command(folder, arguments)


def group(ranks: int = 2) -> list[dict[str, str]]:
    """Return the variables that torchrun sets for each process of a group on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "tests"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    one = [{"RANK": rank, "LOCAL_RANK": rank} | shared | where for rank in range(ranks)]
    return [{key: str(value) for key, value in variables.items()} for variables in one]


def run_group(folder: Path, *arguments: str, limit: float = 300.0) -> list[Done]:
    """Run `halfmask ARGUMENTS` in a folder in two processes that form a group."""
    return wait_for_all([Started(_command, folder, arguments, **variables) for variables in group()], limit)


def in_two_processes(check: Callable[[int], None]) -> None:
    """Call an importable function with each rank of a group of two. It may end the group itself.

    Raises:
        AssertionError: the function raised an error in one of them; the message is its traceback.
    """
    ended = wait_for_all([Started(_check, check, **variables) for variables in group()])
    assert [done.code for done in ended] == [0, 0], "\n".join(done.err for done in ended)


def _check(check: Callable[[int], None]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check(dist.get_rank())
    if dist.is_initialized():
        dist.destroy_process_group()


# Asks the process of the tests to run the command, and passes on what it printed and its exit code.
_CLIENT = """#!{python} -SE
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
asked.sendall(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]).encode())
asked.shutdown(socket.SHUT_WR)
code, out, err = json.load(asked.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        folder, arguments, environment = json.loads(self.rfile.read())
        done = Started(_command_of_shell, Path(folder), tuple(arguments), environment).wait()
        self.wfile.write(json.dumps([done.code, done.out, done.err]).encode())


@contextmanager
def command_in(folder: Path) -> Iterator[None]:
    """Write a file `halfmask` into a folder; while the block runs, it runs the command line in forked processes."""
    with tempfile.TemporaryDirectory() as short, _Server(f"{short}/socket", _Handler) as server:  # paths end at 107
        (folder / "halfmask").write_text(_CLIENT.format(python=sys.executable, address=f"{short}/socket"))
        (folder / "halfmask").chmod(0o755)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield
        server.shutdown()
