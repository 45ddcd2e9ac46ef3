"""What ranks share: alone it is the identity; two processes see each other's values."""

import pytest
import torch

from halfmask.teaching.dist import all_sum, broadcast, gather, rank, world_size
from tests.processes import in_two_processes


def test_one_process_needs_no_group():
    x = torch.arange(6.0).view(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather(x) is x
    assert broadcast(x) is x
    assert all_sum(x) is x


def _share(number: int) -> None:
    assert (world_size(), rank()) == (2, number)
    mine = torch.full((2, 3), float(number)).T[:2]  # not contiguous
    assert gather(mine)[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert all_sum(mine).unique().tolist() == [1.0]
    assert mine.unique().tolist() == [float(number)]
    assert broadcast(torch.tensor([number + 7])).tolist() == [7]


@pytest.mark.slow
def test_two_processes_share_values():
    in_two_processes(_share)
