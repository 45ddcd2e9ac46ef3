"""Every method trains in two processes as one method, and the check notices those that do not."""

import pytest
import torch
from torch.distributed import get_rank

from halfmask.plugins import names, resolve
from halfmask.testing import check_two_processes
from tests.methods.test_contract import VARIANTS, Plain

pytestmark = pytest.mark.slow


def test_every_method_and_variant_stays_one_method():
    methods = [resolve("methods", name) for name in names("methods")]
    variants = [(resolve("methods", name), params) for name, some in VARIANTS.items() for params in some]
    check_two_processes(*methods, *variants)


class KeepsAQueueOfItsOwn(Plain):
    def __init__(self, task, build):
        super().__init__(task, build)
        self.register_buffer("seen", torch.zeros(3))

    def step(self, batch, progress):
        self.seen += batch.labeled.image.mean((0, 2, 3))
        return super().step(batch, progress)


class FailsInOneProcess(Plain):
    def step(self, batch, progress):
        if get_rank() == 1:
            raise ZeroDivisionError("only here")
        return super().step(batch, progress)


def test_what_differs_between_processes_is_named_and_so_is_the_process_that_fails():
    with pytest.raises(AssertionError) as caught:
        check_two_processes(Plain, KeepsAQueueOfItsOwn, FailsInOneProcess)
    message = str(caught.value)
    assert "KeepsAQueueOfItsOwn: two processes differ in ['seen']" in message
    assert "FailsInOneProcess: process 1 failed" in message
    assert "ZeroDivisionError: only here" in message
    assert "Plain: " not in message
