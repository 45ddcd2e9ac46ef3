"""Statistics of batch norm: kept by some passes, estimated anew from clean images."""

import torch
from torch import nn

from halfmask.models.model import Model
from halfmask.models.statistics import estimate_statistics, install_statistics, statistics_kept
from halfmask.testing.tiny import tiny_builder, tiny_task


def tiny_model() -> Model:
    return tiny_builder(tiny_task())()


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 32, 32, generator=generator) * (1 + index) / count for index in range(count)]


def test_statistics_are_those_of_all_images_together() -> None:
    torch.manual_seed(0)
    model = tiny_model().train()
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    seen: list[torch.Tensor] = []
    first = model.get_submodule(norms[0])
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    found = estimate_statistics(model, batches())
    hook.remove()
    together = torch.cat(seen).double()
    assert set(found) == {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}
    torch.testing.assert_close(
        found[f"{norms[0]}.running_mean"].double(), together.mean((0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(found[f"{norms[0]}.running_var"].double(), together.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_the_network_is_left_as_it_was_and_installing_can_be_taken_back() -> None:
    torch.manual_seed(0)
    model = tiny_model().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    found = estimate_statistics(model, batches())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert modes == [part.training for part in model.modules()]
    before = install_statistics(model, found)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in found.items())
    install_statistics(model, before)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_frozen_layers_keep_their_statistics() -> None:
    model = tiny_model()

    class Frozen(nn.Module):
        """An encoder whose batch norm stays in evaluation mode."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

        def forward(self, image: torch.Tensor) -> object:
            return self.inner(image)

    model.encoder = Frozen(model.encoder)
    model.train()
    found = estimate_statistics(model, batches())
    assert found
    assert not any(name.startswith("encoder") for name in found)


def test_a_pass_that_keeps_statistics_gives_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    model = tiny_model().train()
    image = batches()[0]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with statistics_kept(model):
        torch.manual_seed(1)
        kept = model(image)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in start.items())
    torch.manual_seed(1)
    moved = model(image)
    assert torch.equal(kept, moved)
    assert any(not torch.equal(value, model.state_dict()[name]) for name, value in start.items())
