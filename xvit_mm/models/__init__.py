"""Backbones, necks and heads; importing this registers them."""
from .backbones import *
from .heads import *
from .necks import *
