"""Datasets, one file each; the contract is `halfmask.data.contract`."""
