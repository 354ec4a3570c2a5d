"""The feed-forward part of a transformer block."""
from torch import Tensor, nn

from .linear import apply_linear_gelu_linear


class MLP(nn.Module):
    """Linear, GELU, Linear on the last axis: [..., C] to [..., C]."""

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear_gelu_linear(self.fc1, self.act, self.fc2, x)
