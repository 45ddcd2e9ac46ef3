"""DINOv2 vision transformers with patch 14, four taps for a DPT decoder.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, arXiv:2304.07193; taps and
normalization as in Yang et al., "UniMatch V2", TPAMI 2025, arXiv:2410.10777: feature i is the output of tap block
i, after the network's final LayerNorm (the same for all four), without the class token. No dropout, no drop path.

Position embeddings belong to a 37x37 grid (518 px). The authors resize them with an explicit scale factor that
contains an offset of 0.1 cells, without antialiasing; pretrained networks have seen exactly those positions, so
`interpolation="offset"` is the default. timm's own rule is `"size"`: to a target size, antialiased.

Weights: `lvd142m`, Apache-2.0, in timm's or the authors' layout, as they are: a file of another patch size or
position grid is refused, not resampled, and so is one with register tokens, which is another network.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.timm_library import FusedAttention, resample_abs_pos_embed, timm
from halfmask.models.weights import Release, State, load_weights, timm_releases

_SIZES = {  # width, heads, blocks whose output is used
    "small": (384, 6, (2, 5, 8, 11)),
    "base": (768, 12, (2, 5, 8, 11)),
    "large": (1024, 16, (4, 11, 17, 23)),
    "giant": (1536, 24, (9, 19, 29, 39)),
}
_GRID = 37


class DINOv2(Encoder):
    """Four maps of stride 14; image sides must be multiples of 14.

    Args:
        in_channels: bands of the image.
        weights: `null`, `lvd142m`, or a local file.
        size: `small` (22 M parameters), `base` (87 M), `large` (304 M) or `giant` (1.1 G).
        interpolation: of position embeddings at other sizes than 518: `offset` (authors) or `size` (timm).
        dim: token width in place of the size's, for small networks from scratch.
        heads: attention heads in place of the size's.
        frozen: not trained.
    """

    weights_license: ClassVar[str] = "Apache-2.0"

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        size: Literal["small", "base", "large", "giant"] = "small",
        interpolation: Literal["offset", "size"] = "offset",
        dim: Annotated[int, Field(ge=1)] | None = None,
        heads: Annotated[int, Field(ge=1)] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        architecture = f"vit_{size}_patch14_dinov2"
        published_dim, published_heads, self.taps = _SIZES[size]
        dim, heads = dim or published_dim, heads or published_heads
        # Layer scale starts at 1 as in the authors' code; timm's 1e-5 would silence every block of a fresh network.
        self.net: Any = timm.create_model(
            architecture,
            num_classes=0,
            in_chans=in_channels,
            init_values=1.0,
            embed_dim=dim,
            num_heads=heads,
            attn_layer=FusedAttention,
        )
        self.interpolation = interpolation
        self.channels = (dim,) * 4
        self.strides = (14,) * 4
        self.size_multiple = 14
        self.mean, self.std = imagenet_statistics(in_channels)
        if weights is not None:
            load_weights(
                self.net, weights, self.published({"size": size}), stem="patch_embed.proj.weight", convert=_timm_names
            )
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return timm's releases for a size."""
        return timm_releases(f"vit_{params['size']}_patch14_dinov2")

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Return the normalized outputs of the four tap blocks."""
        self.check_size(image)
        x = self.net.patch_embed.proj(image)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, h * w, D)
        x = torch.cat([self.net.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.position_embedding(height, width)
        features = []
        for index, block in enumerate(self.net.blocks):
            x = block(x)
            if index in self.taps:
                patches = self.net.norm(x)[:, 1:]
                features.append(patches.transpose(1, 2).unflatten(2, (height, width)))
        return features

    def position_embedding(self, height: int, width: int) -> Float[Tensor, "1 N D"]:
        """Resize the table to a grid of patches; the class token's row comes first and is unchanged."""
        table = self.net.pos_embed
        if height == width == _GRID:
            return table  # type: ignore[no-any-return]
        if self.interpolation == "size":
            return resample_abs_pos_embed(table, [height, width], num_prefix_tokens=1)  # type: ignore[no-any-return]
        # In float32 whatever the model's dtype: the positions pretrained weights were tuned with.
        grid = table[:, 1:].float().transpose(1, 2).unflatten(2, (_GRID, _GRID))
        scale = ((height + 0.1) / _GRID, (width + 0.1) / _GRID)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _timm_names(state: State) -> State:
    """Rename the authors' tensors, and no more: timm's own filter resamples kernels and tables that do not fit."""
    if "register_tokens" in state or "reg_token" in state:
        raise CheckpointError(
            "this is a DINOv2 file with register tokens, another network; encoder dinov2 has none. Take the file "
            "without `reg` in its name, or model.encoder={name: timm, model: vit_small_patch14_reg4_dinov2}.",
            "H403",
        )
    gated = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}  # of the giant
    renamed = {}
    for key, value in state.items():
        for official, ours in gated.items():
            key = key.replace(official, ours)
        renamed[key] = value
    renamed.pop("mask_token", None)
    return renamed
