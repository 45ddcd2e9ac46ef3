"""Augmentation: geometry on the host, strong views on the device."""
