"""Running statistics of batch norm: which passes move them, and their estimation anew from clean images.

In training, batch norm normalizes by the batch and moves running averages of its statistics; evaluation normalizes by
those averages. They go wrong in two ways where a network learns from strong views: colors and mixtures that no test
image has are averaged in, and the averages lag behind weights that move fast (with momentum 0.1 about ten steps). An
average of weights (EMA teacher) has statistics that belong to none of the networks it was averaged from.

THE RULE, for every method: which images share a pass, and which move the running statistics (`run.passes`).
  * `published`: as the code of each paper has it; the method's file says so.
  * `separate`: labeled images pass alone; images with pseudo-labels, weak or strong, are normalized by the statistics
    of their own batch. Both kinds move the running statistics.
  * `apart`: likewise, but labeled images alone move the running statistics.
    For networks without batch norm nothing changes.
    AllSpark, U2PL, GTA-Seg and plain CPS keep their published passes, in which both kinds of images meet by design;
    so do ST and ST++, whose pseudo-masks are as good as labels from the first step on.
Why: labeled images that share a pass with others are normalized by statistics of both. With few masks the network
learns to tell the two kinds apart by them, and a test image, which looks like the others, is read wrongly; its
pseudo-labels feed that back. FixMatch on facades with two masks, EfficientNet-Lite0 with DeepLabV3+, loses about half
of its accuracy in one pass and nothing apart; statistics of clean images do not mend it (docs/results.md).
With a SegFormer head the shared pass loses little; there the averages are better taken over all images than over the
few labeled ones: `separate` is what plans for a CPU and folder recipes use.

Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3 (precise batch norm): run clean
images through the network as it is and take mean and variance over all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from halfmask.models.model import Logits, Model, Network, Passes, eval_mode

_BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norm as they are, while it normalizes by the batch.

    For strong views: the student learns from them, and is evaluated on images that look otherwise.

    >>> norm = nn.BatchNorm2d(1)
    >>> with statistics_kept(norm):
    ...     _ = norm(torch.ones(2, 1, 1, 1))
    >>> norm.running_mean.item(), norm.track_running_stats
    (0.0, True)
    """
    tracking = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False  # read in training mode only: in evaluation mode the averages are used
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def set_passes(method: nn.Module, passes: Passes) -> None:
    """Apply the rule to every network of a method (`run.passes`)."""
    for part in method.modules():
        if isinstance(part, Model):
            part.passes = passes if part.has_batch_stats else "published"


def pseudo_pass(network: Model) -> AbstractContextManager[None]:
    """Mark a pass of images with pseudo-labels: with `apart` it leaves the running statistics alone."""
    return statistics_kept(network) if network.passes == "apart" else nullcontext()


def pseudo_logits(network: Model, image: Float[Tensor, "U *T C H W"]) -> Logits:
    """Return the logits of images with pseudo-labels."""
    with pseudo_pass(network):
        return network(image)


def labeled_and_pseudo(
    network: Model, labeled: Float[Tensor, "L *T C H W"], pseudo: Float[Tensor, "U *T C H W"]
) -> tuple[Logits, Logits]:
    """Pass labeled images and images with pseudo-labels, together or apart, and return the logits of each.

    Args:
        network: the student.
        labeled: images in [0, 1].
        pseudo: likewise.
    """
    if network.passes_apart:
        return network(labeled), pseudo_logits(network, pseudo)
    first, second = network(torch.cat((labeled, pseudo))).split((len(labeled), len(pseudo)))
    return first, second


@torch.no_grad()
def estimate_statistics(network: Network, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Estimate mean and variance of every batch norm that is not frozen, over all images and processes.

    Each layer sees what the layers before it give with the statistics of the batch, as in training; dropout is off.

    Args:
        network: is left as it was.
        images: batches (B, *T, C, H, W) in [0, 1] on the network's device; the same number on every process.

    Returns:
        New values of the buffers `running_mean` and `running_var`, by their names in the network; empty without batch
        norm or images.
    """
    norms = _unfrozen(network)
    sums: dict[str, Tensor] = {}  # (3, C): values per channel, their sum and the sum of their squares

    def collect(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().float()
            variance, mean = torch.var_mean(values, [0, *range(2, values.ndim)], correction=0)
            exact = torch.float32 if values.device.type == "mps" else torch.float64  # which has no doubles
            variance, mean = variance.to(exact), mean.to(exact)
            count = torch.full_like(mean, values.numel() / values.shape[1])
            moments = torch.stack((count, count * mean, count * (variance + mean.square())))
            sums[name] = sums[name] + moments if name in sums else moments

        return hook

    hooks = [norm.register_forward_pre_hook(collect(name)) for name, norm in norms.items()]
    try:
        with eval_mode(network), statistics_kept(network):
            for norm in norms.values():
                norm.train()
            for batch in images:
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = {}
    for name, total in sums.items():
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        count, first, second = total
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0) * count / (count - 1).clamp_min(1)
        kept = norms[name].running_mean
        assert kept is not None
        found |= {f"{name}.running_mean": mean.to(kept), f"{name}.running_var": variance.to(kept)}
    return found


@torch.no_grad()
def install_statistics(network: nn.Module, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace buffers in place and return what they held.

    Args:
        network: that the statistics are of.
        statistics: as `estimate_statistics` returns them.
    """
    before = {}
    for name, value in statistics.items():
        buffer = network.get_buffer(name)
        before[name] = buffer.clone()
        buffer.copy_(value)
    return before


def _unfrozen(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms that training mode reaches: a frozen encoder keeps its own in evaluation mode."""
    with eval_mode(network):
        network.train()
        return {
            name: part
            for name, part in network.named_modules()
            if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
        }
