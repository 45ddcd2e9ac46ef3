"""What a row of the benchmark is: two computations of the same thing, and what is expected of their ratio."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[], Any]


class Disagreement(Exception):  # a finding about the code, not an error of the user
    """The fast form does not give what the reference gives."""


@dataclass(frozen=True)
class Setting:
    """How the rows are computed.

    Args:
        device: `cpu` or `cuda`.
        quick: tiny sizes and two rounds: shows that everything runs and agrees, not how fast it is.
        rounds: timed rounds, each reference, fast, fast, reference.
        seconds: least duration of one timed block.
        memory: measure saved bytes and peak memory, each form in a process of its own.
        data: a dataset folder whose files are loaded besides the rendered ones.
        seed: of the inputs.
    """

    device: torch.device
    quick: bool = False
    rounds: int = 5
    seconds: float = 0.2
    memory: bool = True
    data: Path | None = None
    seed: int = 0

    def size(self, full: int, quick: int) -> int:
        """Choose between the size that counts and a tiny one."""
        return quick if self.quick else full

    def generator(self) -> torch.Generator:
        """Return a CPU generator, so that inputs are the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw normal values."""
        return torch.randn(*shape, generator=generator or self.generator()).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers of [0, high)."""
        return torch.randint(high, shape, generator=self.generator()).to(self.device)


@dataclass(frozen=True)
class Target:
    """A bound on a measure.

    Args:
        least: the measure should be at least this.
        most: the measure should be at most this.
    """

    least: float | None = None
    most: float | None = None

    def holds(self, value: float, allowance: float = 0.0) -> bool:
        """Tell whether a value keeps the bound, give or take a fraction of it.

        >>> Target(least=2.0).holds(1.8), Target(least=2.0).holds(1.8, allowance=0.15)
        (False, True)
        """
        above = self.least is None or value >= self.least * (1 - allowance)
        return above and (self.most is None or value <= self.most * (1 + allowance))

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"


@dataclass
class Pair:
    """Two forms of one computation, over the same inputs.

    Args:
        reference: the plain formulation.
        fast: what the library runs.
        agree: compares their results, says how far they are apart, and raises `Disagreement` where that is too far.
        traffic: the fewest bytes that any form must read and write, for the share of the copy rate.
        flops: count the matrix products of the fast form, for the share of the matmul rate.
        graph: a backward pass is part of it, so saved bytes are of interest.
        floor: the part of the work that nothing can avoid, such as decoding.
        dtype: of the matrix products of the fast form.
    """

    reference: Compute
    fast: Compute
    agree: Callable[[Any, Any], str]
    traffic: int | None = None
    flops: bool = False
    graph: bool = False
    floor: Compute | None = None
    dtype: torch.dtype = torch.float32


@dataclass
class Measure:
    """One number about a row.

    Args:
        name: `time`, `saved`, `peak`, `wall`, or a name of the row's own.
        value: a ratio reference / fast (greater is better), unless `unit` says something else.
        low: smallest of the rounds.
        high: largest of the rounds.
        unit: `x` for ratios.
        reference: what the ratio's numerator was.
        fast: what its denominator was.
        base_unit: of these two: `s` or `B`.
        limit: share of a physical limit that the fast form reaches, and the name of the limit.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    reference: float | None = None
    fast: float | None = None
    base_unit: str = "s"
    limit: tuple[float, str] | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Args:
        id: what `halfmask bench ID` names; rows of several sizes share it.
        size: the input in words.
        work: makes the pair to compare; or, where time is not the subject, measures by itself.
        targets: device type -> measure -> bound.
        title: what is compared, for `--list`.
        family: the file it stands in; filled in when rows are collected.
        needs_data: run only where `--data` names a dataset.
        devices: kinds of device it is for.
    """

    id: str
    size: str
    work: Callable[[Setting], Pair | list[Measure]]
    title: str
    targets: Mapping[str, Mapping[str, Target]] = field(default_factory=dict)
    family: str = ""
    needs_data: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


def at_least(**bounds: float) -> dict[str, Target]:
    """Bound measures from below: `at_least(time=2.0, saved=3.0)`."""
    return {name: Target(least=value) for name, value in bounds.items()}


def close(*, atol: float, rtol: float = 0.0) -> Callable[[Any, Any], str]:
    """Compare tensors, or tuples of them, with a tolerance.

    >>> close(atol=0.1)(torch.ones(2), torch.tensor([1.0, 1.05]))
    'largest difference 5e-02'
    """

    def agree(reference: Any, fast: Any) -> str:
        worst = 0.0
        for plain, quick in zip(_tensors(reference), _tensors(fast), strict=True):
            if plain.shape != quick.shape:
                raise Disagreement(f"shapes differ: {tuple(plain.shape)} and {tuple(quick.shape)}")
            difference = (plain.double() - quick.double()).abs()
            if not bool((difference <= atol + rtol * plain.double().abs()).all()):
                raise Disagreement(f"largest difference {difference.max().item():.1e}, allowed {atol:g} + {rtol:g} |x|")
            worst = max(worst, difference.max().item() if difference.numel() else 0.0)
        return f"largest difference {worst:.0e}"

    return agree


def equal_but(share: float) -> Callable[[Any, Any], str]:
    """Compare class maps, which may differ in a small share of the pixels (ties up to rounding)."""

    def agree(reference: Tensor, fast: Tensor) -> str:
        different = (reference.long() != fast.long()).double().mean().item()
        if different > share:
            raise Disagreement(f"{different:.1e} of the pixels differ, allowed {share:g}")
        return f"{different:.0e} of the pixels differ"

    return agree


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]
