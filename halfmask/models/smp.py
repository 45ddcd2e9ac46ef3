"""Adapter: any architecture of segmentation_models_pytorch as a `Model` with our seams.

Iakubovskii, "Segmentation Models Pytorch", 2019, https://github.com/qubvel-org/segmentation_models.pytorch. Its
encoder, decoder and segmentation head become `encode`, `decode` and `classify`:

    model: {name: smp, arch: unet, encoder: {name: resnet34, weights: imagenet}}

The library takes multiples of 16 or 32 only, so images are padded by reflection at the right and bottom and the logits
are cropped back. Its encoders also return the image itself (and, for transformers, an empty map): these are no feature
maps a method could perturb, and no decoder reads their values, so `encode` leaves them out and decoders get
zeros of the right shape in their place.
"""

import inspect
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import CheckpointError, RecipeError, ShapeError, nearest
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.model import Model, date_differences, has_batch_norm


class SmpSegmenter(Model):
    """Dense prediction with a network of that library; for image pairs (B, 2, C, H, W), from their feature differences.

    Args:
        arch: its name there: `unet`, `unetplusplus`, `fpn`, `upernet`, `manet`, `linknet`, `pan`, `pspnet`,
            `deeplabv3`, `deeplabv3plus`, `segformer`.
        encoder: encoder name there, for example `resnet34`, `mit_b0`, or `tu-<timm name>`.
        classes: K, number of logits.
        in_channels: bands of the image.
        weights: `imagenet` or another tag of that library; `None` starts from random weights.
        options: further arguments of the encoder, for example `depth` or `output_stride`.
        mean: as for `Model`.
        std: as for `Model`.

    Raises:
        RecipeError: there is no such architecture or encoder, or the two do not fit.
        CheckpointError: the weights cannot be fetched.
    """

    def __init__(
        self,
        arch: str,
        encoder: str,
        classes: int,
        *,
        in_channels: int = 3,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        net = _create(arch, encoder, weights, options or {}, in_channels=in_channels, classes=classes)
        adapted = _SmpEncoder(net.encoder, *_statistics(encoder, weights, in_channels))
        super().__init__(adapted, _SmpDecoder(net, adapted), classes, mean=mean, std=std)
        self._fix_unused_parameters(in_channels)

    def encode(self, image: Float[Tensor, "B *T C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Normalize and encode; of a pair, the differences of the maps of its two dates."""
        if image.ndim == 4:
            return super().encode(image)
        return date_differences(super().encode, image, apart=self.encoder.training and has_batch_norm(self.encoder))

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        """Return the logits of the padded image, cropped to `size` (H, W)."""
        assert isinstance(self.encoder, _SmpEncoder)
        padded = self.encoder.padded_size(*size)
        logits = self.classifier(embedding)
        if tuple(logits.shape[-2:]) != padded:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]  # type: ignore[no-any-return]

    def _fix_unused_parameters(self, in_channels: int) -> None:
        """Exclude parameters no output depends on from training (layers behind the deepest map in use).

        Data-parallel training would wait for their gradients forever.
        """
        assert isinstance(self.encoder, _SmpEncoder)
        training, side = self.training, max(128, 4 * self.encoder.multiple)
        self.eval()  # so that the probe leaves batch-norm statistics alone
        self(torch.zeros(1, in_channels, side, side, device=self.mean.device)).sum().backward()
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None
        self.train(training)


class _SmpEncoder(Encoder):
    def __init__(self, net: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.multiple = int(net.output_stride)
        # Level i halves the image i times, unless dilation stops at the output stride.
        self.all_channels = tuple(net.out_channels)
        self.all_strides = tuple(min(2**level, self.multiple) for level in range(len(self.all_channels)))
        self.levels = [level for level, width in enumerate(self.all_channels) if level > 0 and width > 0]
        self.channels = tuple(self.all_channels[level] for level in self.levels)
        self.strides = tuple(self.all_strides[level] for level in self.levels)
        self.mean, self.std = mean, std

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Round both sides up to the network's multiple."""
        return tuple(-(-side // self.multiple) * self.multiple for side in (height, width))  # type: ignore[return-value]

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        height, width = image.shape[-2:]
        bottom, right = (new - old for new, old in zip(self.padded_size(height, width), (height, width), strict=True))
        if bottom >= height or right >= width:
            raise ShapeError(
                f"image is {width}x{height} but this network works on multiples of {self.multiple} and padding by "
                f"reflection needs sides above {self.multiple // 2}. Use a larger data.crop, or enlarge the images."
            )
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom), mode="reflect")
        features = self.net(image)
        return [features[level] for level in self.levels]


class _SmpDecoder(Decoder):
    def __init__(self, net: Any, encoder: _SmpEncoder) -> None:
        super().__init__(encoder.channels, encoder.strides)
        self.net = net.decoder
        self.embedding = next(m.in_channels for m in net.segmentation_head.modules() if isinstance(m, nn.Conv2d))
        self.all_channels, self.all_strides = encoder.all_channels, encoder.all_strides
        self.levels = encoder.levels
        # In a tuple, so that it is registered once: as the model's classifier.
        self._head = (net.segmentation_head,)

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        coarsest = features[-1]
        given = dict(zip(self.levels, features, strict=True))
        height, width = (side * self.all_strides[-1] for side in coarsest.shape[-2:])
        filled = [
            given[level]
            if level in given
            else coarsest.new_zeros(1).expand(len(coarsest), channels, height // stride, width // stride)
            for level, (channels, stride) in enumerate(zip(self.all_channels, self.all_strides, strict=True))
        ]
        return self.net(filled)  # type: ignore[no-any-return]

    def make_classifier(self, classes: int) -> nn.Module:
        return self._head[0]  # type: ignore[no-any-return]


def _create(arch: str, encoder: str, weights: str | None, options: dict[str, Any], **arguments: Any) -> Any:
    known = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name != "dpt"]
    if arch == "dpt":
        raise RecipeError("model.arch=dpt is not offered through smp: use model.name=segmenter with decoder dpt.")
    if arch not in known:
        raise RecipeError(
            f"model.arch={arch!r} does not exist.{nearest(arch, known)} Known: {', '.join(known)}.", "H303"
        )
    encoders = smp.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise RecipeError(
            f"model.encoder.name={encoder!r} is not an encoder of segmentation_models_pytorch."
            f"{nearest(encoder, encoders)} Use one of its {len(encoders)} names, for example resnet34 or mit_b0, or "
            "tu-<timm name>.",
            "H303",
        )
    signature = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[arch]).parameters
    allowed = {name.removeprefix("encoder_") for name in signature if name.startswith("encoder_")} - {"name", "weights"}
    for key, value in options.items():
        if key in allowed:
            arguments[f"encoder_{key}"] = value
        elif encoder.startswith("tu-"):
            arguments[key] = value  # timm checks it
        else:  # the library would ignore it silently
            raise RecipeError(
                f"model.encoder.{key} is not a parameter of smp encoder {encoder}.{nearest(key, allowed)} "
                f"Known: weights, {', '.join(sorted(allowed))}.",
                "H303",
            )
    try:
        return smp.create_model(arch, encoder_name=encoder, encoder_weights=weights, **arguments)
    except OSError as error:
        raise CheckpointError(
            f"cannot fetch weights {weights!r} of encoder {encoder} from the Hugging Face hub: "
            f"{str(error).strip().partition(chr(10))[0]} Use model.encoder.weights=null, or fetch them on a machine "
            "with network and copy its cache folder (HF_HOME).",
            "H409",
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise RecipeError(f"model.arch={arch} with encoder {encoder} and {arguments}: {error}") from error


def _statistics(encoder: str, weights: str | None, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if weights is None or in_channels != 3:
        return imagenet_statistics(in_channels)
    settings = smp.encoders.get_preprocessing_params(encoder, pretrained=weights)
    # Some weights were trained on values in [0, 255]; ours are in [0, 1].
    scale = max(settings["input_range"] or (0, 1))
    return tuple(value / scale for value in settings["mean"]), tuple(value / scale for value in settings["std"])
