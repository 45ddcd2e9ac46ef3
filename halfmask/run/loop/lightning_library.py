"""Lightning, imported without `scipy.signal` and without the compiler of torch.

torchmetrics, which Lightning needs, imports the first only to add a name of before, Lightning the second for one class:
together nearly all of the time that Lightning takes.
"""

from halfmask.on_demand import on_demand
from halfmask.run.loop.eager import without_compiler

with on_demand("scipy.signal", "hamming"), without_compiler():
    import lightning as L
    from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
    from lightning.pytorch.strategies import DDPStrategy

__all__ = ["CheckpointIO", "DDPStrategy", "L"]
