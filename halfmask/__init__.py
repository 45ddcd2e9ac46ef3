"""Semi-supervised semantic segmentation: train from few masks and many images."""

__version__ = "0.1.0"
