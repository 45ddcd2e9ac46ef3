"""Checks that your own method, dataset, encoder or decoder keeps its contract, and tiny networks to try it on."""

from halfmask.testing.datasets import check_dataset
from halfmask.testing.host_sync import HostSyncError, no_host_sync
from halfmask.testing.methods import check_method
from halfmask.testing.models import check_decoder, check_encoder
from halfmask.testing.processes import check_two_processes
from halfmask.testing.tiny import tiny_batch, tiny_builder, tiny_task

__all__ = [
    "HostSyncError",
    "check_dataset",
    "check_decoder",
    "check_encoder",
    "check_method",
    "check_two_processes",
    "no_host_sync",
    "tiny_batch",
    "tiny_builder",
    "tiny_task",
]
