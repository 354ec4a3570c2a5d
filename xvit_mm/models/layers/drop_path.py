"""Stochastic depth of residual branches."""
import torch
from mmcv.cnn import bricks
from torch import Tensor


class DropPath(bricks.DropPath):
    """mmcv's `DropPath`, with a residual sum in one operation."""

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """`x + drop_path(branch)`: each image of the batch keeps its branch or loses it.

        x, branch: [B, ...]. A kept branch is divided by the probability to keep it.
        """
        if not self.training or not self.drop_prob:
            return x + branch
        keep = 1 - self.drop_prob
        shape = branch.shape[0], *[1] * (branch.ndim - 1)
        # The random numbers are those of mmcv.
        scale = torch.rand(shape, dtype=branch.dtype, device=branch.device)
        scale = scale.add_(keep).floor_().div_(keep)
        return torch.addcmul(x, branch, scale)
