"""Lightning, imported without `scipy.signal`, without the compiler of torch and without Triton.

torchmetrics, which Lightning needs, imports the first only to add a name of before, Lightning the second for one class,
and the third through the counter of operations in its summary of a network, which is off here.
"""

from halfmask.on_demand import on_demand
from halfmask.run.loop.eager import without_compiler

_COUNTER = on_demand("torch.utils.flop_counter", "FlopCounterMode")
with on_demand("scipy.signal", "hamming"), _COUNTER, without_compiler():
    import lightning as L
    from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
    from lightning.pytorch.strategies import DDPStrategy

__all__ = ["CheckpointIO", "DDPStrategy", "L"]
