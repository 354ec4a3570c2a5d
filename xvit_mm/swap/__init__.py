"""Put a backbone of this package into any mmdet, mmseg, mmpretrain or mmrotate config.

    read -> what the old backbone gives -> rules of the framework -> optimizer -> write -> trial

`necks.py` and the tables at the top of the other modules are where a new neck, head or recipe goes.
"""
from .swap import Swap, swap_backbone

__all__ = ['Swap', 'swap_backbone']
