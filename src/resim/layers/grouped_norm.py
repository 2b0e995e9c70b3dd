"""BatchNorm over groups of images, as in the published program.

The published program has 32 images on each process, and its BatchNorm normalises these 32 together. Here a process may
have several groups, and each is normalised by itself. The running statistics are updated once a step with the mean over
all groups of all processes (`commit_statistics`), so that they do not depend on how groups are distributed over
processes and forward passes.

Shapes: N images, C channels, H x W cells.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.distributed.rows import mean_over_processes


class _NormalizeGroups(torch.autograd.Function):
    """BatchNorm of each group of consecutive images, written into one output without copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(x)
        statistics, saved = weight.new_zeros(2, 2, groups, len(weight)).unbind()
        rows = (x.chunk(groups), out.chunk(groups), *_rows(statistics), *_rows(saved))
        for x_g, out_g, mean, variance, saved_mean, saved_invstd in zip(*rows, strict=True):
            torch.ops.aten.native_batch_norm.out(
                x_g, weight, bias, mean, variance, True, 1.0, eps,
                out=out_g, save_mean=saved_mean, save_invstd=saved_invstd,
            )  # fmt: skip
        ctx.eps = eps
        ctx.save_for_backward(x, weight, saved)
        ctx.mark_non_differentiable(statistics)
        return out, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, saved = ctx.saved_tensors
        groups = saved.shape[1]
        grad_out = torch.empty_like(x).copy_(grads[0]) if grads[0].stride() != x.stride() else grads[0]
        rows = (grad_out.chunk(groups), x.chunk(groups), *_rows(saved))
        # native_batch_norm_backward has no out= variant: concatenating its results costs one copy
        gradients = [
            torch.ops.aten.native_batch_norm_backward(
                grad_g, x_g, weight, None, None, mean, invstd, True, ctx.eps, [True, True, True]
            )
            for grad_g, x_g, mean, invstd in zip(*rows, strict=True)
        ]
        grad_x, grad_weight, grad_bias = zip(*gradients, strict=True)
        return torch.cat(grad_x), torch.stack(grad_weight).sum(0), torch.stack(grad_bias).sum(0), None, None


def _rows(pair: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(2, groups, C) -> the vectors of the first half and those of the second; each view costs the host time."""
    first, second = pair.unbind()
    return first.unbind(), second.unbind()


def normalize_groups(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise each group in plain operations, which torch.compile fuses.

    Returns:
        (N, C, H, W) in the dtype of `x`, and each group's mean and unbiased variance, (2, groups, C).
    """
    wide = x.unflatten(0, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=(1, 3, 4), keepdim=True, correction=0)
    scale, shift = (parameter.view(-1, 1, 1) for parameter in (weight, bias))
    # the cast comes last so that the output is no view: backward copies an in-place ReLU on a view
    out = ((wide - mean) * torch.rsqrt(variance + eps) * scale + shift).flatten(0, 1).to(x.dtype)
    count = wide[0].numel() // wide.shape[2]
    unbiased = variance.detach().flatten(1) * (count / max(count - 1, 1))
    return out, torch.stack([mean.detach().flatten(1), unbiased])


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the batch statistics of each group of `group_size` consecutive images.

    A batch smaller than a group is one group; a larger batch must be a multiple of the group size. In training, the
    running statistics change only when `commit_statistics` is called. In evaluation this is BatchNorm2d.

    Raises:
        ValueError: in training, the batch is not a multiple of the group size.

    Source: He et al., arXiv 1911.05722, section 3.3, has BatchNorm per process; a group stands for a process.
    """

    group_size: int
    pending: Tensor
    """(3, C): sums of the means and of the variances of the groups since the last commit, and the number of groups."""

    def __init__(self, num_features: int, group_size: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.group_size = group_size
        # a buffer of constant shape: torch.compile does not recompile between passes
        self.register_buffer("pending", torch.zeros(3, num_features), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch.nn
        """Normalise (N, C, H, W) group by group."""
        if not self.training:
            return super().forward(input)
        groups = count_groups(len(input), self.group_size)
        if groups == 1:
            statistics = torch.zeros_like(self.pending[:2])[:, None]
            mean, variance = statistics[:, 0].unbind()
            out = F.batch_norm(input, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        elif torch.compiler.is_compiling():
            out, statistics = normalize_groups(input, self.weight, self.bias, groups, self.eps)
        else:
            result = _NormalizeGroups.apply(input, self.weight, self.bias, groups, self.eps)
            out, statistics = cast(tuple[Tensor, Tensor], result)
        with torch.no_grad():
            self.pending[:2].add_(statistics.sum(1))  # "+=" would also assign the slice again
            self.pending[2].add_(groups)
        return out


class GroupedBatchNormAct2d(GroupedBatchNorm2d):
    """`GroupedBatchNorm2d` followed by a drop layer and an activation, as in timm's BatchNormAct2d."""

    def __init__(self, norm: nn.BatchNorm2d, group_size: int) -> None:
        super().__init__(norm.num_features, group_size, norm.eps, _momentum(norm))
        self.drop: Any = getattr(norm, "drop", nn.Identity())
        self.act: Any = getattr(norm, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (N, C, H, W) group by group, then drop and activate."""
        return self.act(self.drop(super().forward(input)))


def _momentum(norm: nn.BatchNorm2d) -> float:
    """The momentum of a norm; PyTorch's default for one with a cumulative mean, which groups cannot share."""
    return 0.1 if norm.momentum is None else norm.momentum


def count_groups(images: int, group_size: int) -> int:
    """The number of groups in a batch of `images`, at least one.

    Raises:
        ValueError: the batch is larger than a group and not a multiple of the group size.
    """
    if images > group_size and images % group_size:
        raise ValueError(f"{images} images are no whole number of groups of {group_size}")
    return max(1, images // group_size)


def group_norms(module: nn.Module, group_size: int) -> None:
    """Replace every BatchNorm2d in `module` by a grouped BatchNorm of the same name, weights and settings."""
    for name, child in list(module.named_children()):
        if isinstance(child, GroupedBatchNorm2d):
            child.group_size = group_size
        elif isinstance(child, nn.BatchNorm2d):
            if hasattr(child, "act"):
                norm: GroupedBatchNorm2d = GroupedBatchNormAct2d(child, group_size)
            else:
                norm = GroupedBatchNorm2d(child.num_features, group_size, child.eps, _momentum(child))
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            group_norms(child, group_size)


@torch.no_grad()
def commit_statistics(module: nn.Module) -> Tensor:
    """Update all running statistics in `module` with the mean over all groups of all processes since the last call.

    Returns:
        A scalar to add to the reported loss: 0, or NaN if any of the statistics was not finite.
    """
    checks: list[Tensor] = []
    by_momentum: dict[float, list[GroupedBatchNorm2d]] = {}
    for norm in module.modules():
        if isinstance(norm, GroupedBatchNorm2d):
            by_momentum.setdefault(norm.momentum or 0.0, []).append(norm)
    for momentum, norms in by_momentum.items():
        pending = torch.cat([norm.pending for norm in norms], dim=1)  # (3, channels of all norms)
        groups = pending[2]
        checks.append(0.0 * pending.sum())
        means = pending[:2] / groups.clamp(min=1)
        (statistics,) = mean_over_processes([means], dtype=means.dtype)
        running = [[norm.running_mean for norm in norms], [norm.running_var for norm in norms]]
        share = (groups > 0).to(groups.dtype) * momentum  # 0 for a norm that has not run
        for row, buffers in enumerate(running):
            assert all(value is not None for value in buffers)
            values = cast(list[Tensor], buffers)
            moved = torch.cat(values)
            moved += share * (statistics[row] - moved)
            torch._foreach_copy_(values, list(moved.split([len(value) for value in values])))  # type: ignore[attr-defined]
        counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        has_run = (groups > 0).to(torch.int64).split([norm.pending.shape[1] for norm in norms])
        torch._foreach_add_(counts, [channels[0] for channels in has_run])  # type: ignore[attr-defined]
        torch._foreach_zero_([norm.pending for norm in norms])  # type: ignore[attr-defined]
    return torch.stack(checks).sum() if checks else torch.zeros(())
