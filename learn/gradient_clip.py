"""`clip_gradients` and its `ClipConfig`.

Clipping limits the input of the optimiser, not its step: Adam divides the scale out again. It helps
against single extreme batches, but not against a loss without a bound.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtd3.store.errors import check_settings

SCOPES = ("joint", "per_module")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Limits on the norms of the gradients.

    Example:
        >>> ClipConfig(scope="per_module").actor_max_norm
        1.0
    """

    enabled: bool = True
    """Whether to clip gradients. Their norms are measured in any case."""
    actor_max_norm: float = 1.0
    """Largest norm of the actor's gradients."""
    critic_max_norm: float = 10.0
    """Largest norm of the critic's gradients."""
    norm_type: float = 2.0
    """Order of the norm."""
    scope: str = "joint"
    """``joint`` limits the norm of CNN and MLPs together, ``per_module`` limits each of them."""

    def __post_init__(self) -> None:
        scope = ("scope", self.scope in SCOPES, f"one of {SCOPES}")
        above_zero = ("actor_max_norm", "critic_max_norm", "norm_type")
        check_settings(self, "clip.", scope, above_zero=above_zero)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """Norms of the gradients of one network; scalars, NaN for a part that does not exist."""

    cnn_before: Tensor
    """Norm of the CNN's gradients before clipping."""
    mlp_before: Tensor
    """Norm of the MLPs' gradients before clipping."""
    cnn_after: Tensor
    """Norm of the CNN's gradients after clipping."""
    mlp_after: Tensor
    """Norm of the MLPs' gradients after clipping."""
    clipped: Tensor
    """1 if anything was clipped, else 0."""
    finite: Tensor
    """bool, whether all gradients are finite."""


def clip_gradients(
    cnn: Sequence[nn.Parameter],
    mlp: Sequence[nn.Parameter],
    max_norm: float,
    config: ClipConfig,
) -> GradientNorms:
    """Scale the gradients of one network down to a maximum norm, in place."""
    modules = [[p.grad for p in part if p.grad is not None] for part in (cnn, mlp)]
    parts = [_norm(gradients, config.norm_type) for gradients in modules if gradients]
    total = torch.linalg.vector_norm(torch.stack(parts), config.norm_type)
    before = _named(parts, modules, total)
    after, clipped = before, torch.zeros_like(total)
    if config.enabled:
        limited = [total, total] if config.scope == "joint" else before
        scales = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in limited]
        for gradients, scale in zip(modules, scales, strict=True):
            if gradients:
                torch._foreach_mul_(gradients, scale)
        parts = [_norm(gradients, config.norm_type) for gradients in modules if gradients]
        after = _named(parts, modules, total)
        over = [(norm > max_norm).to(total.dtype) for norm in limited]
        clipped = torch.maximum(*over)
    return GradientNorms(
        cnn_before=before[0],
        mlp_before=before[1],
        cnn_after=after[0],
        mlp_after=after[1],
        clipped=clipped,
        finite=torch.isfinite(total),
    )


def _norm(gradients: list[Tensor], norm_type: float) -> Tensor:
    norms = torch._foreach_norm(gradients, norm_type)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return total


def _named(parts: list[Tensor], modules: list[list[Tensor]], like: Tensor) -> list[Tensor]:
    """Return the norm of each module; NaN, on the same device, if it has no gradients."""
    found = iter(parts)
    return [next(found) if gradients else torch.full_like(like, torch.nan) for gradients in modules]
