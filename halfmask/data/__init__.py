"""Datasets (one file each), split lists, sampling and loading."""
