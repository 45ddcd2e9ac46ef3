"""MiT-B0 to -B5, the hierarchical transformer of SegFormer.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
arXiv:2105.15203. Per stage: an overlapping patch embedding, then blocks

    x = x + droppath(attention(norm1(x)));   x = x + droppath(ffn(norm2(x)))

where attention's keys and values come from a map reduced by an r x r convolution of stride r, and the ffn has a
depthwise 3x3 convolution that replaces position embeddings (so any image size is legal).

Parameter names are those of the authors' checkpoints. Those weights (`imagenet`) are under the NVIDIA Source
Code License for SegFormer: research and evaluation only.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.errors import ShapeError
from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.timm_library import DropPath, fused_attention
from halfmask.models.weights import Release, load_weights

Size = Literal["b0", "b1", "b2", "b3", "b4", "b5"]
_DEPTHS: dict[Size, tuple[int, int, int, int]] = {
    "b0": (2, 2, 2, 2),
    "b1": (2, 2, 2, 2),
    "b2": (3, 4, 6, 3),
    "b3": (3, 4, 18, 3),
    "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}
_HEADS = (1, 2, 5, 8)
_REDUCTIONS = (8, 4, 2, 1)
_LICENSE = "NVIDIA Source Code License for SegFormer, research and evaluation only"
# Below this side the first stage's map is smaller than its reduction.
_SMALLEST_SIDE = 29


class MiT(Encoder):
    """Four stages at strides 4, 8, 16, 32; every map side is the previous one halved, rounded up.

    Args:
        in_channels: bands of the image.
        weights: `null`, `imagenet`, or a local file of the authors.
        size: `b0` (3.3 M parameters) to `b5` (81 M).
        drop_path: chance to skip a residual branch, growing linearly from 0 to this over the blocks.
        frozen: not trained.
    """

    weights_license: ClassVar[str] = _LICENSE

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        size: Size = "b2",
        drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.channels = (32, 64, 160, 256) if size == "b0" else (64, 128, 320, 512)
        self.strides = (4, 8, 16, 32)
        self.mean, self.std = imagenet_statistics(in_channels)
        rates = iter(torch.linspace(0, drop_path, sum(_DEPTHS[size]), device="cpu").tolist())
        inputs = in_channels
        for stage, (width, depth) in enumerate(zip(self.channels, _DEPTHS[size], strict=True), start=1):
            kernel, stride = (7, 4) if stage == 1 else (3, 2)
            heads, reduction = _HEADS[stage - 1], _REDUCTIONS[stage - 1]
            blocks = [_Block(width, heads, reduction, next(rates)) for _ in range(depth)]
            self.add_module(f"patch_embed{stage}", _PatchEmbed(inputs, width, kernel, stride))
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(width, eps=1e-6))
            inputs = width
        self.apply(_init)
        if weights is not None:
            load_weights(
                self, weights, self.published({"size": size}), stem="patch_embed1.proj.weight", drop=("head.",)
            )
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return the authors' weights for a size, as another library's hub has them."""
        return {"imagenet": Release(f"smp-hub/mit_{params['size']}.imagenet", _LICENSE)}

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return the four normalized stage outputs."""
        if min(image.shape[-2:]) < _SMALLEST_SIDE:
            raise ShapeError(
                f"image is {image.shape[-1]}x{image.shape[-2]} but encoder mit needs sides of {_SMALLEST_SIDE} "
                "or more. Use a larger data.crop, or enlarge the images."
            )
        x, features = image, []
        for stage in range(1, 5):
            tokens, height, width = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, height, width)
            x = _to_map(self.get_submodule(f"norm{stage}")(tokens), height, width)
            features.append(x)
        return features


class _PatchEmbed(nn.Module):
    def __init__(self, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], int, int]:
        x = self.proj(x)
        return self.norm(_to_tokens(x)), x.shape[-2], x.shape[-1]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, reduction)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _FeedForward(width, 4 * width)

    def forward(self, x: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B N D"]:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x), height, width))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B N D"]:
        source = x
        if self.reduction > 1:  # left-over rows and columns are dropped by the convolution
            source = self.norm(_to_tokens(self.sr(_to_map(x, height, width))))
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = fused_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = _Depthwise(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B N D"]:
        x = self.dwconv(self.fc1(x), height, width)
        return self.fc2(F.gelu(x))  # type: ignore[no-any-return]


class _Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B N D"]:
        return _to_tokens(self.dwconv(_to_map(x, height, width)))


def _to_tokens(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B N D"]:
    return x.flatten(2).transpose(1, 2)


def _to_map(x: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B D h w"]:
    return x.transpose(1, 2).reshape(len(x), -1, height, width)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
