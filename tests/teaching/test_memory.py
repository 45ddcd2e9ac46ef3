"""Ring buffers per class: a whole batch at once equals one vector after the other."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.teaching import memory as module
from halfmask.teaching.memory import ClassMemory, enqueue
from halfmask.testing import no_host_sync
from tests.oracles import allspark as reference
from tests.processes import in_two_processes


def one_by_one(memory: Tensor, pointer: Tensor, vectors: Tensor, classes: Tensor) -> None:
    """The rule itself: the next vector goes to the next slot of its class."""
    for vector, label in zip(vectors.flatten(0, 1), classes.flatten().tolist(), strict=True):
        memory[label, pointer[label]] = vector
        pointer[label] = (pointer[label] + 1) % memory.shape[1]


def random_case(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Up to 20 vectors of 3 images for up to 8 slots of 4 classes: many wrap, some overflow."""
    classes, slots, images, vectors = (int(torch.randint(1, most, (), generator=generator)) for most in (5, 9, 4, 21))
    memory = torch.randn(classes, slots, 3, generator=generator)
    pointer = torch.randint(0, slots, (classes,), generator=generator)
    labels = torch.randint(0, classes, (images, vectors), generator=generator)
    return memory, pointer, torch.randn(images, vectors, 3, generator=generator), labels


@pytest.fixture(params=["host", "device"])
def form(request, monkeypatch):
    """Both forms of the batched write."""
    monkeypatch.setattr(module, "_at_once", getattr(module, f"_on_{request.param}"))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("write", [enqueue, reference.enqueue], ids=["batched", "per class"])
def test_every_write_ends_where_the_rule_says(write):
    generator = torch.Generator().manual_seed(0)
    wrapped = overflowed = 0
    for _ in range(200):
        memory, pointer, vectors, classes = random_case(generator)
        counts = classes.flatten().bincount(minlength=len(pointer))
        wrapped += bool((pointer + counts > memory.shape[1]).any())
        overflowed += bool((counts > memory.shape[1]).any())
        expected, expected_pointer = memory.clone(), pointer.clone()
        one_by_one(expected, expected_pointer, vectors, classes)
        write(memory, pointer, vectors, classes)
        assert torch.equal(memory, expected)
        assert torch.equal(pointer, expected_pointer)
    assert min(wrapped, overflowed) > 50


@pytest.mark.usefixtures("form")
def test_a_memory_that_is_not_contiguous_is_written_too():
    memory, pointer, vectors, classes = random_case(torch.Generator().manual_seed(3))
    strided = memory.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    again = pointer.clone()
    enqueue(memory, pointer, vectors, classes)
    enqueue(strided, again, vectors, classes)
    assert torch.equal(strided, memory)
    assert torch.equal(again, pointer)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_vectors_of_half_precision_are_written(kept):
    memory, pointer, vectors, classes = random_case(torch.Generator().manual_seed(3))
    expected, memory = memory.to(kept), memory.to(kept)
    one_by_one(expected, pointer.clone(), vectors.bfloat16(), classes)
    enqueue(memory, pointer, vectors.bfloat16(), classes)
    assert torch.equal(memory, expected)


def test_a_class_without_vectors_stays_as_it_is():
    memory, pointer = torch.randn(3, 4, 2), torch.tensor([1, 2, 3])
    before = memory.clone()
    enqueue(memory, pointer, torch.randn(2, 5, 2), torch.tensor([[0, 0, 2, 2, 0], [2, 0, 0, 2, 2]]))
    assert torch.equal(memory[1], before[1])
    assert pointer.tolist() == [(1 + 5) % 4, 2, (3 + 5) % 4]


def test_the_host_never_waits_for_a_device(monkeypatch):
    monkeypatch.setattr(module, "_at_once", module._on_device)
    memory = ClassMemory(4, 6, 3)
    with no_host_sync():
        memory.enqueue(
            torch.randn(2, 6, 3), torch.tensor([[0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 0, 1]]), torch.tensor([7, 8])
        )
    assert memory.pointer.tolist() == [2, 2, 1, 1]


@pytest.mark.usefixtures("form")
def test_a_write_between_a_forward_pass_and_its_backward_pass_is_an_error():
    """The gradient would be one of the new vectors."""
    memory = ClassMemory(2, 3, 2)
    factor = torch.ones(2, requires_grad=True)
    loss = (memory.slots * factor).sum()
    memory.enqueue(torch.randn(1, 2, 2), torch.tensor([[0, 1]]), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_bfloat16_memory_holds_what_it_gets():
    memory = ClassMemory(2, 3, 2).bfloat16()
    memory.enqueue(torch.tensor([[[1.5, 2.0]]]), torch.tensor([[1]]), torch.tensor([0]))
    assert memory.slots[1, 0].tolist() == [1.5, 2.0]


@pytest.mark.usefixtures("form")
def test_slots_remember_the_image_they_came_from():
    memory = ClassMemory(2, 3, 1)
    assert not memory.filled.any()
    memory.enqueue(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[0, 1], [0, 0]]), torch.tensor([5, 6]))
    assert memory.origin.tolist() == [[5, 6, 6], [5, -1, -1]]
    assert memory.filled.tolist() == [[True, True, True], [True, False, False]]
    assert memory.slots[0, :, 0].tolist() == [1.0, 3.0, 4.0]
    memory.enqueue(torch.tensor([[[9.0]]]), torch.tensor([[0]]), torch.tensor([7]))
    assert memory.origin[0].tolist() == [7, 6, 6]


def test_the_memory_is_saved_and_another_size_is_refused():
    memory, other = ClassMemory(3, 4, 9), ClassMemory(3, 4, 9)
    memory.enqueue(torch.randn(1, 4, 9), torch.tensor([[0, 0, 2, 1]]), torch.tensor([3]))
    other.load_state_dict(memory.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), other.buffers(), strict=True))
    with pytest.raises(CheckpointError, match=r"3 classes in the checkpoint, 4 here.*Continue with the classes"):
        ClassMemory(4, 4, 9).load_state_dict(memory.state_dict())
    with pytest.raises(CheckpointError, match=r"9 tokens per channel in the checkpoint, 16 here.*the crop"):
        ClassMemory(3, 4, 16).load_state_dict(memory.state_dict())


def _write(memory: ClassMemory, step: int, rank: int) -> None:
    """Write the two images that a rank has in a step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    vectors, classes = torch.randn(2, 5, 2, generator=generator), torch.randint(0, 3, (2, 5), generator=generator)
    memory.enqueue(vectors, classes, torch.tensor([2 * rank, 2 * rank + 1]) + 100 * step)


def _written(sync: str, rank: int) -> ClassMemory:
    """What one rank holds after two steps."""
    torch.manual_seed(0)
    memory = ClassMemory(3, 5, 2, sync)
    for step in range(2):
        _write(memory, step, rank)
    return memory


def _alone(order: list[list[int]]) -> ClassMemory:
    """What a single process holds that writes the images of the given ranks in each step."""
    torch.manual_seed(0)
    memory = ClassMemory(3, 5, 2)
    for step, ranks in enumerate(order):
        for rank in ranks:
            _write(memory, step, rank)
    return memory


def _share(rank: int) -> None:
    written = {sync: _written(sync, rank) for sync in ("gather", "rank0", "local")}
    dist.destroy_process_group()
    expected = {
        "gather": _alone([[0, 1], [0, 1]]),  # both ranks' images, in rank order, on both
        "rank0": _alone([[0], [rank]]),  # what rank 1 wrote in the first step is lost, its second write is its own
        "local": _alone([[rank], [rank]]),
    }
    for sync, memory in written.items():
        for name, value in memory.state_dict().items():
            assert torch.equal(value, expected[sync].state_dict()[name]), (sync, name, rank)


@pytest.mark.slow
def test_two_processes_share_what_their_setting_says():
    in_two_processes(_share)
    # The three differ, so that one cannot pass for another.
    gathered, first, own = _alone([[0, 1], [0, 1]]), _alone([[0], [1]]), _alone([[1], [1]])
    assert not torch.equal(gathered.slots, first.slots)
    assert not torch.equal(first.slots, own.slots)


def test_alone_the_three_settings_are_the_same():
    memories = [_written(sync, 0) for sync in ("gather", "rank0", "local")]
    for memory in memories[1:]:
        assert torch.equal(memory.slots, memories[0].slots)
