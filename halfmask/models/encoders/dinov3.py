"""DINOv3 vision transformers with patch 16 and rotary position embeddings.

Siméoni et al., "DINOv3", 2025, arXiv:2508.10104, from timm. Positions are computed from coordinates, so any size that
is a multiple of 16 works without resizing a table. As with DINOv2, four taps are normalized by the network's final
LayerNorm; class and register tokens are dropped.

Weights: `lvd1689m` (web images), for some sizes `sat493m` (satellite images); both under the DINOv3 license, which
restricts some uses and must be accepted at the hub.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.timm_library import timm
from halfmask.models.weights import Release, load_weights, timm_releases

_SIZES = {  # width, heads, blocks whose output is used (ends of four equal parts for sizes new since DINOv2)
    "small": (384, 6, (2, 5, 8, 11)),
    "small_plus": (384, 6, (2, 5, 8, 11)),
    "base": (768, 12, (2, 5, 8, 11)),
    "large": (1024, 16, (4, 11, 17, 23)),
    "huge_plus": (1280, 20, (7, 15, 23, 31)),
}


class DINOv3(Encoder):
    """Four maps of stride 16; image sides must be multiples of 16.

    Args:
        in_channels: bands of the image.
        weights: `null`, `lvd1689m`, `sat493m`, or a local file.
        size: `small` (22 M parameters) to `huge_plus` (840 M).
        dim: token width in place of the size's, for small networks from scratch.
        heads: attention heads in place of the size's; `dim / heads` must be a multiple of 4.
        frozen: not trained.
    """

    weights_license: ClassVar[str] = "DINOv3 License"

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        size: Literal["small", "small_plus", "base", "large", "huge_plus"] = "small",
        dim: Annotated[int, Field(ge=1)] | None = None,
        heads: Annotated[int, Field(ge=1)] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        architecture = f"vit_{size}_patch16_dinov3"
        published_dim, published_heads, self.taps = _SIZES[size]
        dim, heads = dim or published_dim, heads or published_heads
        self.net: Any = timm.create_model(
            architecture, num_classes=0, in_chans=in_channels, init_values=1.0, embed_dim=dim, num_heads=heads
        )
        self.channels = (dim,) * 4
        self.strides = (16,) * 4
        self.size_multiple = 16
        self.mean, self.std = imagenet_statistics(in_channels)
        if weights is not None:
            load_weights(
                self.net,
                weights,
                self.published({"size": size}),
                stem="patch_embed.proj.weight",
                convert=lambda state: timm.models.eva.checkpoint_filter_fn(state, self.net),
            )
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return timm's releases for a size."""
        return timm_releases(f"vit_{params['size']}_patch16_dinov3")

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Return the normalized outputs of the four tap blocks."""
        self.check_size(image)
        maps = self.net.forward_intermediates(image, indices=list(self.taps), norm=True, intermediates_only=True)
        return list(maps)
