"""Everything that draws."""
from .tokens import draw_tokens

__all__ = ['draw_tokens']
