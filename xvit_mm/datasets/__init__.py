"""Data sets: generated shapes, CIFAR-10, checks, and the user's own data."""
from .shapes import METAINFO, Scene, draw_scene, make_shapes_dataset

__all__ = ['METAINFO', 'Scene', 'draw_scene', 'make_shapes_dataset']
