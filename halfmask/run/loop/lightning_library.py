"""Lightning, imported without `scipy.signal`.

torchmetrics, which Lightning needs, imports it only to add a name of before: two thirds of the time Lightning takes.
"""

from halfmask.on_demand import on_demand

with on_demand("scipy.signal", "hamming"):
    import lightning as L
    from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
    from lightning.pytorch.strategies import DDPStrategy

__all__ = ["CheckpointIO", "DDPStrategy", "L"]
