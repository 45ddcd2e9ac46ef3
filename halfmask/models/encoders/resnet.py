"""ResNet-18 to -152 with dilated stages and the deep stem of segmentation papers.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385. The deep stem (three 3x3
convolutions instead of one 7x7) and the stride in the 3x3 of a bottleneck are those of most semi-supervised
segmentation code; dilation follows Chen et al., "Rethinking Atrous Convolution", 2017, arXiv:1706.05587: below
the output stride the first block of a stage keeps the previous dilation, the others use the new one.

Weights: timm's releases. The deep stem of depth 50, 101 and 152 has `gluon_in1k` (Apache-2.0); other tags
belong to the plain stem.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.timm_library import timm
from halfmask.models.weights import Release, load_weights, timm_releases

# Releases of the deep-stem networks are filed under their own architecture names.
_DEEP_RELEASES = {50: "resnet50s", 101: "resnet101s", 152: "resnet152s"}


class ResNet(Encoder):
    """Four stages, strides 4, 8, 16, 32 or less.

    Args:
        in_channels: bands of the image.
        weights: `null`, `imagenet`, another tag of timm, or a local file.
        depth: layers; 18 and 34 have basic blocks, the others bottlenecks.
        stem: `deep` (3x3, 3x3, 3x3) or `plain` (7x7).
        output_stride: of the last stages; 16 or 8 dilate instead of striding, at 2 or 4 times the cost there.
        width: channels of the first stage's 3x3 convolutions; 16 makes a network for a CPU.
        blocks: blocks per stage, in place of those of `depth`.
        frozen: not trained, batch-norm statistics fixed.
    """

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        stem: Literal["deep", "plain"] = "deep",
        output_stride: Literal[8, 16, 32] = 16,
        width: Annotated[int, Field(ge=1)] = 64,
        blocks: tuple[int, int, int, int] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        shape: dict[str, Any] = {"channels": tuple(width * 2**stage for stage in range(4))}
        if stem == "deep":
            shape |= {"stem_type": "deep", "stem_width": width}
        if blocks is not None:
            shape |= {"layers": tuple(blocks)}
        self.net: Any = timm.create_model(
            f"resnet{depth}", num_classes=0, in_chans=in_channels, output_stride=output_stride, **shape
        )
        stages: list[dict[str, Any]] = list(self.net.feature_info)[1:]  # type: ignore[arg-type]  # [0] is the stem
        self.channels = tuple(stage["num_chs"] for stage in stages)
        self.strides = tuple(stage["reduction"] for stage in stages)
        self.mean, self.std = imagenet_statistics(in_channels)
        if weights is not None:
            releases = self.published({"depth": depth, "stem": stem})
            first = "conv1.weight" if stem == "plain" else "conv1.0.weight"
            load_weights(self.net, weights, releases, stem=first, drop=("fc.",))
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return timm's releases for a depth and stem."""
        depth = params["depth"]
        architecture = f"resnet{depth}" if params["stem"] == "plain" else _DEEP_RELEASES.get(depth)
        releases = timm_releases(architecture) if architecture else {}
        return {"imagenet": next(iter(releases.values()))} | releases if releases else {}

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return c1 to c4."""
        x = self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(image))))
        features = []
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = stage(x)
            features.append(x)
        return features
