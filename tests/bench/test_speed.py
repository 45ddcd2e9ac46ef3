"""`halfmask bench RECIPE`: every part of a step is found, rates are what they claim; never a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from typer.testing import CliRunner

from halfmask.bench.speed import PHASES, PROFILED, WARM_UP, _Watch, flop_counter, measure_recipe, read_profile
from halfmask.cli.app import app
from halfmask.errors import RecipeError
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("speed") / "shapes")


def test_the_parts_of_a_step_are_measured(data):
    speed = measure_recipe(recipe(data, method="supervised"), steps=2)
    assert speed.phases.keys() == {*PHASES}
    assert all(speed.phases[name] > 0 for name in ("load wait", "host to device", "forward", "backward", "optimizer"))
    assert sum(speed.phases.values()) <= 1
    assert speed.gpu_phases is None
    assert any("conv" in name for name in speed.operators)
    assert (speed.images, speed.steps) == (2, 2)
    assert 0 < speed.wait < speed.step
    assert speed.matmul > 0


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("layer", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_counts_as_much_as_the_convolution(layer, groups):
    """By hand: 2 images, 5 x 7 cells of the map that the kernel is moved over, 12 x 24 / groups pairs of channels."""
    convolution, image = layer(12, 24, 3, padding=1, groups=groups), torch.zeros(2, 12, 5, 7, requires_grad=True)
    once = 2 * 2 * (5 * 7) * (12 * 24 // groups) * 9
    for counted, passes in ((image, 3), (image.detach(), 2)):  # pixels need no gradient
        with flop_counter() as counter:
            convolution(counted).sum().backward()
        assert counter.get_total_flops() == passes * once


def test_the_command_prints_and_writes_the_same(data, tmp_path):
    arguments = ["bench", "fixmatch/folder", "--data", str(data), "--steps", "2", "data.crop=32", "data.workers=0"]
    arguments += ["model.encoder={name: timm, model: test_resnet}", "model.decoder={name: segformer, embedding: 16}"]
    out, trace = tmp_path / "deep" / "speed.json", tmp_path / "trace.json"
    done = CliRunner().invoke(app, [*arguments, "--json", "--out", str(out), "--trace", str(trace)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert json.loads(done.stdout) == found
    assert found["images_per_second"]["with_loading"] == pytest.approx(found["images"] / found["step"])
    assert found["phases"]["EMA"] > 0
    labels = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"halfmask: {name}" for name in PHASES} <= labels


def test_a_command_without_data_says_so():
    done = CliRunner().invoke(app, ["bench", "fixmatch/folder"])
    assert done.exit_code == 2
    assert "--data DIR" in done.stderr


def test_several_processes_are_refused(data):
    with pytest.raises(RecipeError, match=r"run\.devices=1"):
        measure_recipe(recipe(data, "run.devices=2"), steps=2)


def test_steps_without_loading_repeat_the_last_batch_of_a_closed_loader():
    watch, closed = _Watch(steps=1, log_every=1), []

    def checked(items: Iterator[int]) -> Iterator[int]:
        yield from items

    feed = watch._feed(lambda: closed.append(True), checked, iter(range(100)))
    loaded = WARM_UP + 1 + PROFILED
    assert [next(feed) for _ in range(loaded)] == [*range(loaded)]
    assert closed == []
    assert [next(feed) for _ in range(3)] == [loaded - 1] * 3
    assert closed == [True]
    assert watch.wait > 0


def event(name: str, start: float, end: float, *kernels: float, label: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        is_user_annotation=label,
        self_cpu_time_total=end - start,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        kernels=[SimpleNamespace(duration=duration) for duration in kernels],
    )


def test_work_of_the_gpu_belongs_to_the_phase_that_launched_it():
    on_gpu = event("halfmask: forward", 0, 1e9, label=True)
    on_gpu.device_type = DeviceType.CUDA
    events = [
        event("halfmask: forward", 0, 100, 999.0, label=True),
        event("halfmask: backward", 100, 400, label=True),
        on_gpu,
        event("aten::mm", 50, 60, 10.0, 20.0),
        event("MmBackward0", 390, 410, 60.0),  # of another thread; it began before the phase ended
        event("aten::add", 450, 460, 10.0),
        event("aten::empty", 0, 500),
    ]
    host, gpu, operators = read_profile(events, seconds=500e-6)
    assert (host["forward"], host["backward"], host["EMA"]) == pytest.approx((0.2, 0.6, 0))
    assert gpu == pytest.approx({"backward": 0.6, "forward": 0.3, "other": 0.1})
    assert operators == pytest.approx({"MmBackward0": 0.6, "aten::mm": 0.3, "aten::add": 0.1})
