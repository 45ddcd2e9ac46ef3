"""Find operations that would make the host wait for the accelerator, on any device.

On a GPU the host must run ahead of the device; reading one value back stops it. The operations that read values
are visible to PyTorch's dispatcher on a CPU too, so a test without a GPU finds them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READS_VALUES = {
    "aten::_local_scalar_dense": ".item(), float(tensor), int(tensor) or `if tensor`",
    "aten::equal": "torch.equal",
    "aten::is_nonzero": "`if tensor`",
    "aten::nonzero": "nonzero, or torch.where with one argument",
    "aten::masked_select": "masked_select",
    "aten::bincount": "bincount: it reads its size on the host; count with scatter_add_",
    "aten::repeat_interleave": "repeat_interleave with a tensor of counts",
    "aten::unique_consecutive": "unique_consecutive",
    "aten::unique_dim": "unique along an axis",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class HostSyncError(RuntimeError):
    """An operation read a tensor's values on the host."""


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        reason = _READS_VALUES.get(name)
        if name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is not None:
            reason = None
        if name in _INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            reason = "x[mask] with a boolean mask; use torch.where or multiply by the mask"
        if reason is not None:
            raise HostSyncError(
                f"{name} makes the host wait for the device: {reason}. Keep decisions on the device: masks with "
                "torch.where, sums divided by a clamped count, log values as tensors. If a method must do it, it "
                "says why in `host_sync`."
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise `HostSyncError` where a value is read on the host; on a GPU its own check is switched on as well.

    >>> with no_host_sync():
    ...     x = torch.ones(3).sum() / torch.ones(3).sum().clamp_min(1)
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    restore: Callable[[], None] = (lambda: torch.cuda.set_sync_debug_mode(before)) if cuda else (lambda: None)
    if cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Watch():  # type: ignore[no-untyped-call]
            yield
    finally:
        restore()
