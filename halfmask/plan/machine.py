"""Report what this machine has for training: versions, devices, decoding speed, folders, memory, extras."""

import importlib.metadata
import io
import os
import platform
import re
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from halfmask import __version__
from halfmask.data.folder.images.decode import decode_bytes

PACKAGES = (
    "torch", "torchvision", "lightning", "timm", "segmentation-models-pytorch", "numpy", "pillow", "pydantic", "typer",
    "safetensors", "huggingface-hub",
)  # fmt: skip
# What each optional dependency of pyproject.toml is for.
FEATURES = {
    "export": "halfmask export to ONNX, and its comparison with the original",
    "geo": "GeoTIFF with more than 8 bits or 4 bands, and its coordinates",
    "annotate": "masks from and to COCO json with run-length codes",
    "coco": "the former name of `annotate`",
    "fast": "faster decoding of JPEG and PNG images",
    "pretrained": "ImageNet weights of EfficientNet-Lite0 to -Lite2 without a download",
    "app": "halfmask app, a page to try a model on images",
}
_GIB = 2**30
# Loader workers hand batches over in shared memory; containers often have 64 MB of it.
_LEAST_SHARED = 1 * _GIB
_LEAST_DISK = 5 * _GIB
_SECONDS = 0.3


@dataclass(frozen=True)
class FolderFacts:
    """A folder that runs, caches or temporary files go to."""

    use: str
    path: str
    writable: bool
    free_gib: float


@dataclass(frozen=True)
class Extra:
    """An optional group of packages."""

    name: str
    feature: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class WeightFacts:
    """Pretrained weights, and where they are."""

    network: str
    machine: str
    license: str
    where: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found; `problems` say what to do.

    Args:
        versions: of Python, the system and the packages that matter.
        devices: accelerators, best first; the CPU last.
        decoding: images per second and thread, 512 x 512.
        folders: where files go.
        shared_gib: free shared memory, `None` where the system has no such limit.
        extras: optional packages.
        weights: pretrained weights that a plan may choose, in the order of its preference.
        broken: required packages that are absent.
        problems: what will hurt, each with its cure.
    """

    versions: dict[str, str]
    devices: list[dict[str, Any]]
    decoding: dict[str, float]
    folders: list[FolderFacts]
    shared_gib: float | None
    extras: list[Extra]
    weights: list[WeightFacts] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        lines = ["versions " + ", ".join(versions[:4]), *_columns(versions[4:])]
        lines += [f"device   {_device(device)}" for device in self.devices]
        speeds = ", ".join(f"{kind} {speed:,.0f}" for kind, speed in self.decoding.items())
        lines.append(f"decoding {speeds} images/s per thread (512x512)")
        for folder in self.folders:
            state = f"{folder.free_gib:,.1f} GiB free" if folder.writable else "NOT WRITABLE"
            lines.append(f"folder   {folder.use}: {folder.path}  {state}")
        if self.shared_gib is not None:
            lines.append(f"shared   {self.shared_gib:,.1f} GiB of shared memory free")
        for extra in self.extras:
            state = (
                f'missing {", ".join(extra.missing)}: pip install "halfmask[{extra.name}]"' if extra.missing else "ok"
            )
            lines.append(f"extra    {extra.name}: {extra.feature}  {state}")
        lines += [f"weights  {one.network} ({one.machine}): {one.where}; {one.license}" for one in self.weights]
        lines += [f"problem  {problem}" for problem in self.problems] or ["no problems found"]
        return "\n".join(lines)


def examine(folder: Path | str = ".") -> Diagnosis:
    """Look at this machine.

    Args:
        folder: where runs would go.
    """
    versions, broken = _versions()
    devices = _devices()
    folders = _folders(Path(folder))
    shared = _shared_memory()
    problems = [f"{name} is not installed: pip install halfmask installs it" for name in broken]
    problems += _device_problems(devices)
    for place in folders:
        if not place.writable:
            problems.append(f"{place.path} ({place.use}) cannot be written: choose another folder, or mend its owner")
        elif place.free_gib * _GIB < _LEAST_DISK:
            problems.append(f"{place.path} ({place.use}) has {place.free_gib:.1f} GiB left: free some space")
    if shared is not None and shared * _GIB < _LEAST_SHARED:
        problems.append(
            f"{shared:.2f} GiB of shared memory: loader workers need about 1; give the container more (docker run "
            "--shm-size 8g), or use data.workers=0"
        )
    return Diagnosis(versions, devices, _decoding(), folders, shared, _extras(), _weights(), broken, problems)


def _versions() -> tuple[dict[str, str], list[str]]:
    versions = {"halfmask": __version__, "python": platform.python_version(), "system": platform.platform()}
    broken = []
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            broken.append(name)
    return versions, broken


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        devices.append(
            {
                "name": f"cuda:{index}",
                "model": properties.name,
                "memory_gib": round(total / _GIB, 1),
                "free_gib": round(free / _GIB, 1),
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "model": platform.processor() or "Apple GPU", "bf16": False})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    devices.append({"name": "cpu", "model": platform.machine(), "cores": cores, "bf16": bf16})
    return devices


def _device_problems(devices: list[dict[str, Any]]) -> list[str]:
    import torch

    if len(devices) == 1 and shutil.which("nvidia-smi") is not None:
        built = torch.version.cuda
        why = "this torch is built without CUDA" if built is None else f"torch is built for CUDA {built}"
        return [f"an NVIDIA driver is installed, but torch sees no GPU: {why}; compare with the driver (nvidia-smi)"]
    return []


def _decoding() -> dict[str, float]:
    """Decode a textured picture again and again for a moment."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC)
    speeds = {}
    for name, options in (("jpeg", {"quality": 90}), ("png", {})):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < _SECONDS:
            decode_bytes(buffer.getvalue(), Path(f"image.{name}"))
            count += 1
        speeds[name] = round(count / spent, 1)
    return speeds


def _folders(runs: Path) -> list[FolderFacts]:
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    places = {"runs": runs, "temporary files": Path(tempfile.gettempdir()), "downloaded weights": Path(cache)}
    return [_folder(use, path.expanduser().absolute()) for use, path in places.items()]


def _folder(use: str, path: Path) -> FolderFacts:
    existing = path
    while not existing.exists() and existing != existing.parent:  # it is made when it is needed
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # permissions alone say nothing about read-only disks
            file.write(b"x")
        writable = True
    except OSError:
        writable = False
    return FolderFacts(use, str(path), writable, round(shutil.disk_usage(existing).free / _GIB, 2))


def _shared_memory() -> float | None:
    place = Path("/dev/shm")
    return round(shutil.disk_usage(place).free / _GIB, 2) if place.is_dir() else None


def _extras() -> list[Extra]:
    needed: dict[str, list[str]] = defaultdict(list)
    for requirement in importlib.metadata.requires("halfmask") or []:
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if extra is not None and extra[1] in FEATURES:
            needed[extra[1]].append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return [
        Extra(name, FEATURES[name], tuple(package for package in packages if not _installed(package)))
        for name, packages in needed.items()
    ]


def _weights() -> list[WeightFacts]:
    from halfmask.models.weights import whereabouts
    from halfmask.plan.choices import release_of
    from halfmask.plan.table import NETWORKS

    releases = [(row, release_of(row)) for row in NETWORKS]
    return [
        WeightFacts(row.title, row.machine.upper(), release.license, whereabouts(release))
        for row, release in releases
        if release is not None
    ]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _device(device: dict[str, Any]) -> str:
    memory = f", {device['free_gib']} of {device['memory_gib']} GiB free" if "memory_gib" in device else ""
    cores = f", {device['cores']} cores" if "cores" in device else ""
    return f"{device['name']}: {device['model']}{memory}{cores}{', bfloat16' if device['bf16'] else ''}"


def _columns(cells: list[str], per_line: int = 4) -> list[str]:
    return ["         " + ", ".join(cells[i : i + per_line]) for i in range(0, len(cells), per_line)]
