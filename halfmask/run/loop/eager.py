"""Training without the compiler of torch, unless it is asked for: importing it takes over 4 CPU seconds.

Lightning imports it for one class, optimizers at each step, to say where a compiled graph would end.

Two things stay for the life of the process, where Lightning was imported without the compiler. Lightning holds the
stand-in's `OptimizedModule`: what a user's own code gives it as `torch.compile(module)` is not recognized as compiled
(`run.compile` compiles encoder and decoder in place, which needs no such word). And `torch._compile` keeps the
stand-in's `disable` with each function it was asked for (`__dynamo_disable`): these then run without the mark that ends
a compiled graph, which matters to those alone who compile an optimizer's step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from halfmask.on_demand import on_demand


class OptimizedModule(nn.Module):
    """Stand for the class of compiled modules; nothing is one."""


def _as_it_is(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    return function


def _no_break() -> None:
    pass


@contextmanager
def without_compiler() -> Iterator[None]:
    """Replace `torch._dynamo` inside the block by a stand-in without its cost, unless it is imported already."""
    instead = {"OptimizedModule": OptimizedModule, "disable": _as_it_is, "graph_break": _no_break}
    # torchvision, which Lightning imports too, asks for the second.
    with on_demand("torch._dynamo", **instead), on_demand("torch._dynamo.utils", "is_compile_supported"):
        yield
