"""Drawing: predictions, attention, tokens, captions and legends."""
from .tokens import draw_tokens

__all__ = ['draw_tokens']
