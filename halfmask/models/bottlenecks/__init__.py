"""Bottlenecks, one file each."""
