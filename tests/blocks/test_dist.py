"""What ranks share: alone it is the identity; two processes see each other's values."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from halfmask.blocks.dist import all_sum, broadcast, gather, rank, world_size


def test_one_process_needs_no_group():
    x = torch.arange(6.0).view(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather(x) is x
    assert broadcast(x) is x
    assert all_sum(x) is x


def _process(number: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=number, world_size=2)
    assert (world_size(), rank()) == (2, number)
    mine = torch.full((2, 3), float(number)).T[:2]  # not contiguous
    assert gather(mine)[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert all_sum(mine).unique().tolist() == [1.0]
    assert mine.unique().tolist() == [float(number)]
    assert broadcast(torch.tensor([number + 7])).tolist() == [7]
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_values():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_process, args=(port,), nprocs=2)
