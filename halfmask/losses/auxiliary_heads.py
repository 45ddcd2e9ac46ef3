"""Auxiliary decoders: K copies of a classifier with weights of their own, trained against one target.

Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005.
Faster than one decoder after the other with all its maps kept for backward, with the same result:

  * Weights are stored stacked, (K, ...) each; `head_state` and `load_head` give and take those of one decoder.
  * A factor without channels commutes with a 1x1 convolution without bias, W (z * m) = m * (W z), and a factor without
    places with its weights: most decoders need no perturbed copy of z.
  * Sub-pixel classifiers are chains of matrix products over pixels: every product is followed by one twice as fine, and
    the pixel shuffle, a mere permutation, is left out. The target is brought into that order once.
  * Decoders run in groups, and each group's gradient is taken at once, in the forward pass (`_GradientInForward`): the
    maps of one group live at a time.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from halfmask.errors import RecipeError, ShapeError
from halfmask.losses.consistency import Objective, Terms, weighted_terms
from halfmask.models.decoders.psp import SubPixel


class Perturbed(NamedTuple):
    """What is done to z for some consecutive decoders: one of the two is given.

    Args:
        factor: multiplies z; axes of size 1 broadcast.
        offset: is added to z.
    """

    factor: Float[Tensor, "n _B _D _h _w"] | None = None
    offset: Float[Tensor, "n B D h w"] | None = None

    def __len__(self) -> int:
        """Return the number of decoders."""
        given = self.factor if self.factor is not None else self.offset
        return 0 if given is None else given.shape[0]

    def of(self, number: int, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Return the perturbed z of one decoder."""
        if self.offset is not None:
            return z + self.offset[number]
        return z if self.factor is None else z * self.factor[number]


class AuxiliaryHeads(nn.Module):
    """K decoders after the pattern of a classifier.

    Args:
        classifier: of the main decoder; the others start from weights of their own.
        count: K.

    Raises:
        RecipeError: the classifier has buffers, or K is 0.
    """

    def __init__(self, classifier: nn.Module, count: int) -> None:
        super().__init__()
        if count < 1:
            raise RecipeError("at least one auxiliary decoder is needed: set one of method.heads to 1 or more.")
        if any(True for _ in classifier.buffers()):
            raise RecipeError(
                "auxiliary decoders are copies of the classifier, and this one keeps statistics (buffers), which "
                "cannot be shared. Use a classifier of convolutions, for example that of decoder psp."
            )
        self.count = count
        self.chained = _is_chain(classifier)
        # In a tuple: neither registered nor moved; `functional_call` replaces all its parameters.
        self._pattern = (copy.deepcopy(classifier).to("meta"),)
        self._shapes = {name: parameter.shape for name, parameter in classifier.named_parameters()}
        states = [dict(_fresh(classifier).named_parameters()) for _ in range(count)]
        self.weights = nn.ParameterDict(
            {_key(name): _joined([state[name].detach() for state in states]) for name in self._shapes}
        )

    def stacked(self) -> dict[str, Shaped[Tensor, "K *_"]]:
        """Return the weights, one row per decoder, under the classifier's names."""
        return {name: self.weights[_key(name)].view(self.count, *shape) for name, shape in self._shapes.items()}

    def head_state(self, number: int) -> dict[str, Tensor]:
        """Return the weights of one decoder as a state dict of the classifier."""
        return {name: weight[number].detach().clone() for name, weight in self.stacked().items()}

    @torch.no_grad()
    def load_head(self, number: int, state: dict[str, Tensor]) -> None:
        """Set the weights of one decoder from a state dict of the classifier.

        Raises:
            ShapeError: names or shapes differ.
        """
        given, own = {name: value.shape for name, value in state.items()}, self._shapes
        if given != own:
            raise ShapeError(f"decoder {number} holds {own}, but the given weights are {given}.")
        for name, weight in self.stacked().items():
            weight[number] = state[name]

    def run(self, number: int, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of one decoder as the classifier gives them."""
        return self._call({name: weight[number] for name, weight in self.stacked().items()}, z)

    def rows(self, maps: Shaped[Tensor, "B *C H W"]) -> Shaped[Tensor, "R *C"]:
        """Reorder maps of the logits' size into the decoders' pixel order, one row each, channels last."""
        return to_rows(maps, self._stages)

    def row_head(self, number: int) -> Callable[[Tensor], Tensor]:
        """Return decoder `number` as a function from z to rows of logits (R, K)."""
        weights = {name: weight[number : number + 1] for name, weight in self.stacked().items()}

        def head(z: Tensor) -> Tensor:
            if not self.chained:
                return to_rows(self._call({name: weight[0] for name, weight in weights.items()}, z), 0)
            project, bias, stages = _layers(weights)
            y = _place_last(torch.matmul(project, z.flatten(2)), 1)
            return _chain(y if bias is None else y + bias[:, None], *stages)[0].to(z.dtype)

        return head

    def loss(
        self,
        z: Float[Tensor, "B D h w"],
        perturbed: Sequence[Perturbed],
        objective: Objective,
        *,
        group: int = 1,
        pairs: Float[Tensor, " K"] | None = None,
    ) -> tuple[Float[Tensor, ""], Terms]:
        """Average the objective over all decoders, each on its perturbed embedding.

        Args:
            z: embedding; the gradient reaches it.
            perturbed: in the order of the decoders.
            objective: what to compare with, pixels in the order of `rows`.
            group: decoders computed at once: more are faster on a GPU and need more memory; 0: the plain form, one
                after the other with a pixel shuffle, all maps kept for backward.
            pairs: 1 / n for the n decoders of the pair-wise term, else 0.

        Returns:
            The weighted sum, and its terms without factors (no gradient).

        Raises:
            ShapeError: as many perturbations as decoders are needed.
        """
        if sum(len(part) for part in perturbed) != self.count:
            raise ShapeError(f"{self.count} decoders got {sum(len(part) for part in perturbed)} perturbed embeddings.")
        pairs = z.new_zeros(self.count) if pairs is None else pairs
        if objective.pair_weight and objective.pair_mean is None:
            mean = self._mean_prediction(z.detach(), perturbed, max(group, 1), pairs)
            objective = objective._replace(pair_mean=mean)
        if group == 0:
            return self._plain_loss(z, perturbed, objective, pairs)
        shared, stacked, logits_of = self._prepared(z, perturbed)

        def term(part: slice, *leaves: Tensor) -> tuple[Tensor, Terms]:
            share = objective.pixels.new_full((part.stop - part.start,), 1 / self.count)
            return weighted_terms(logits_of(part, *leaves), objective, share, pairs[part].to(share))

        total, *terms = _GradientInForward.apply(term, list(_parts(self.count, group)), len(shared), *shared, *stacked)
        return total, Terms(*terms)

    @property
    def _stages(self) -> int:
        pattern = self._pattern[0]
        return len(pattern.stages) if isinstance(pattern, SubPixel) else 0

    def _call(self, weights: dict[str, Tensor], z: Tensor) -> Tensor:
        return functional_call(self._pattern[0], weights, (z,))  # type: ignore[no-any-return]

    def _plain_loss(
        self, z: Tensor, perturbed: Sequence[Perturbed], objective: Objective, pairs: Tensor
    ) -> tuple[Tensor, Terms]:
        share = objective.pixels.new_full((1,), 1 / self.count)
        places = [(part, number) for part in perturbed for number in range(len(part))]
        sums = [
            weighted_terms(
                self.rows(self.run(k, part.of(number, z)))[None], objective, share, pairs[k : k + 1].to(share)
            )
            for k, (part, number) in enumerate(places)
        ]
        terms = [torch.stack(values).sum().detach() for values in zip(*(terms for _, terms in sums), strict=True)]
        return torch.stack([total for total, _ in sums]).sum(), Terms(*terms)

    @torch.no_grad()
    def _mean_prediction(self, z: Tensor, perturbed: Sequence[Perturbed], group: int, pairs: Tensor) -> Tensor:
        shared, stacked, logits_of = self._prepared(z, perturbed)
        mean = z.new_zeros(())
        for part in _parts(self.count, group):
            leaves = [*shared, *(tensor[part] for tensor in stacked)]
            mean = mean + torch.einsum("g,grk->rk", pairs[part], logits_of(part, *leaves).to(z).softmax(-1))
        return mean

    def _prepared(
        self, z: Tensor, perturbed: Sequence[Perturbed]
    ) -> tuple[list[Tensor], list[Tensor], Callable[..., Tensor]]:
        """Return tensors all decoders share, stacked tensors, and the function from them to a group's logits."""
        stacked = self.stacked()
        if self.chained:
            project, bias, stages = _layers(stacked)
            y = _projected(z, project, perturbed)  # (K, P, C)
            y = y if bias is None else y + bias[:, None]
            return [], [y, *stages], lambda part, y, *stages: _chain(y, *stages)
        places = [(part, number) for part in perturbed for number in range(len(part))]
        names = list(stacked)

        def logits_of(part: slice, z: Tensor, *weights: Tensor) -> Tensor:
            maps = [
                to_rows(self._call(dict(zip(names, own, strict=True)), kind.of(number, z)), 0)
                for (kind, number), *own in zip(places[part], *weights, strict=True)
            ]
            return torch.stack(maps)

        return [z], list(stacked.values()), logits_of


class _GradientInForward(torch.autograd.Function):
    """Sum of a term over groups of decoders; forward keeps their summed gradients instead of their maps.

    Inner gradients come from `torch.autograd.grad`: no parameter's `.grad` is touched, and a data-parallel wrapper
    sees the one backward of the step.
    """

    @staticmethod
    def forward(ctx: Any, term: Callable[..., Any], parts: list[slice], n_shared: int, *tensors: Tensor) -> Any:
        """Call `term(part, *shared, *rows of stacked)`, which returns the scalar to differentiate and a tuple."""
        shared, stacked = tensors[:n_shared], tensors[n_shared:]
        # Zeros for what every part adds to, empty for what each part writes its own rows of.
        gradients = [torch.zeros_like(x) for x in shared] + [torch.empty_like(x) for x in stacked]
        sums: list[Tensor] = []
        for part in parts:
            # Leaves of their own: the graph of a part ends here, and is freed before the next part is computed.
            leaves = [x.detach().requires_grad_() for x in (*shared, *(x[part] for x in stacked))]
            with torch.enable_grad():
                loss, values = term(part, *leaves)
                found = torch.autograd.grad(loss, leaves)
            for total, gradient in zip(gradients[:n_shared], found, strict=False):
                total += gradient
            for total, gradient in zip(gradients[n_shared:], found[n_shared:], strict=True):
                total[part] = gradient
            now = [loss.detach(), *(value.detach() for value in values)]
            sums = now if not sums else [a + b for a, b in zip(sums, now, strict=True)]
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Scale what forward found by the gradient of the sum."""
        return None, None, None, *(gradient * outer[0] for gradient in ctx.saved_tensors)


def to_rows(maps: Shaped[Tensor, "B *C H W"], stages: int) -> Shaped[Tensor, "R *C"]:
    """Order pixels by cell, then by sub-pixel of each of `stages` doublings; channels last.

    Full-resolution row = 2^s y + 2^(s-1) i_1 + ... + i_s for sub-pixels i of s stages; columns likewise.
    """
    side = 2**stages
    *lead, height, width = maps.shape
    halves = (2,) * stages
    split = maps.reshape(*lead, height // side, *halves, width // side, *halves)
    n = len(lead)  # axes before the places: B and perhaps C
    places = [0, n, n + 1 + stages]
    for stage in range(1, stages + 1):
        places += [n + stage, n + 1 + stages + stage]
    ordered = split.permute(*places, *range(1, n))
    return ordered.reshape(-1, *lead[1:])


def _chain(y: Tensor, *stages: Tensor) -> Tensor:
    """Pass (G, P, C) through the sub-pixel convolutions: weights (G, 4C, C) and biases (G, 4C) in turn."""
    for weight, bias in zip(stages[::2], stages[1::2], strict=True):
        # Rows stay in cell order, so the pixel shuffle of a doubling is a view and costs nothing.
        y = torch.baddbmm(bias[:, None], y, weight.transpose(1, 2)).relu()
        y = y.view(len(y), -1, weight.shape[-1])
    return y


def _layers(stacked: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Return the first convolution (K, C, D), its bias, the stages' weights and biases, by sub-pixel."""
    if "weight" in stacked:  # a plain 1x1 convolution
        return stacked["weight"].flatten(2), stacked.get("bias"), []
    stages = []
    for name, weight in stacked.items():
        if name.startswith("stages."):
            flat = weight.flatten(2) if weight.ndim == 5 else weight  # (K, 4C, C) or (K, 4C)
            stages.append(flat.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2))
    return stacked["project.weight"].flatten(2), None, stages


def _projected(z: Tensor, weight: Tensor, perturbed: Sequence[Perturbed]) -> Tensor:
    """Run the first convolution of every decoder on its perturbed z: (K, B * h * w, C)."""
    flat = z.flatten(2)  # (B, D, P)
    parts = list(zip(perturbed, weight.split([len(part) for part in perturbed]), strict=True))
    plain = [w for part, w in parts if _without_channels(part)]
    # One product for all whose factor has no channels, and for the constant part of those with an offset.
    common = iter(
        torch.matmul(torch.cat(plain).flatten(0, 1), flat)
        .unflatten(1, (-1, weight.shape[1]))
        .split([len(w) for w in plain], dim=1)
        if plain
        else ()
    )
    projected = []
    for part, w in parts:
        if part.offset is not None:
            # W (z + o) = W z + W o, and W z is in the common product.
            moved = torch.matmul(w[:, None], part.offset.flatten(3))  # (n, B, C, P)
            y = next(common) + moved.transpose(0, 1)
        elif part.factor is None or part.factor.shape[2] == 1:
            y = next(common)
            if part.factor is not None:
                y = y * part.factor.flatten(3).transpose(0, 1)
        elif part.factor.shape[3:] == (1, 1):
            # A factor per channel goes into the weights: they are smaller than z.
            scaled = w[None] * part.factor[..., 0, 0].transpose(0, 1)[:, :, None]  # (B, n, C, D)
            y = torch.matmul(scaled.flatten(1, 2), flat).unflatten(1, (len(w), -1))
        else:
            y = torch.stack([_recomputed(z, f, own) for f, own in zip(part.factor, w, strict=True)], dim=1)
        projected.append(y)  # (B, n, C, P)
    return torch.cat([_place_last(y.flatten(1, 2), y.shape[1]) for y in projected])


def _without_channels(part: Perturbed) -> bool:
    return part.offset is not None or part.factor is None or part.factor.shape[2] == 1


def _place_last(y: Tensor, count: int) -> Tensor:
    """Reorder (B, n * C, P) to (n, B * P, C)."""
    split: Tensor = y.unflatten(1, (count, -1))
    return split.permute(1, 0, 3, 2).flatten(1, 2)


def _recomputed(z: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """Compute W (z * f); the product z * f, as large as z, is made again in backward instead of kept."""

    def project(z: Tensor, weight: Tensor) -> Tensor:
        return torch.matmul(weight, (z * factor).flatten(2))

    if not torch.is_grad_enabled():
        return project(z, weight)
    return checkpoint(project, z, weight, use_reentrant=False, preserve_rng_state=False)


def _is_chain(classifier: nn.Module) -> bool:
    if isinstance(classifier, SubPixel):
        return True
    if type(classifier) is not nn.Conv2d:
        return False
    plain = (classifier.kernel_size, classifier.stride, classifier.padding, classifier.groups)
    return plain == ((1, 1), (1, 1), (0, 0), 1)


def _fresh(module: nn.Module) -> nn.Module:
    """Copy a module and draw its weights anew, by the topmost `reset_parameters` of each branch."""
    copied = copy.deepcopy(module)

    def reset(part: nn.Module) -> None:
        if callable(getattr(part, "reset_parameters", None)):
            part.reset_parameters()  # type: ignore[operator]
        else:
            for child in part.children():
                reset(child)

    reset(copied)
    return copied


def _joined(weights: list[Tensor]) -> Tensor:
    # What is a vector in one decoder stays one, of K times the length: optimizers tell weights and biases by that.
    return torch.cat(weights) if weights[0].ndim == 1 else torch.stack(weights)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name holds no dots


def _parts(count: int, group: int) -> Iterator[slice]:
    for start in range(0, count, group):
        yield slice(start, min(start + group, count))
