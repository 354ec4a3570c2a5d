"""Generated data sets for the quick start and the tests."""
from .shapes import METAINFO, Scene, draw_scene, make_shapes_dataset

__all__ = ['METAINFO', 'Scene', 'draw_scene', 'make_shapes_dataset']
