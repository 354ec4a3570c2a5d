"""Binary masks and labels to COCO annotations whose masks, boxes and areas agree exactly.

Pixel (column, row) covers [column, column + 1] x [row, row + 1]. A polygon that follows the edges
of the pixels is decoded by pycocotools to the very mask it came from.
"""
from __future__ import annotations

import cv2
import numpy as np

Vertex = tuple[int, int]


def coco_annotation(
    mask: np.ndarray,
    *,
    annotation_id: int,
    image_id: int,
    category_id: int,
) -> dict:
    """One entry of COCO's `annotations` list for the visible part of an object.

    Args:
        mask: `[H, W]` bool, with at least one pixel set.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        raise ValueError(f'annotation {annotation_id} of image {image_id} has an empty mask; '
                         'leave out objects without visible pixels')
    left, top = int(columns[0]), int(rows[0])
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': category_id,
        'segmentation': mask_to_polygons(mask),
        'area': int(mask.sum()),
        'bbox': [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        'iscrowd': 0,
    }


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """`[H, W]` bool to COCO polygons `[[x0, y0, x1, y1, ...], ...]`, one for each fragment.

    Holes are kept: pycocotools decodes the polygons to exactly the mask given.
    """
    count, fragments = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return [_fragment_polygon(fragments == index) for index in range(1, count)]


def _fragment_polygon(fragment: np.ndarray) -> list[int]:
    outline, *holes = _boundary_loops(fragment)
    # COCO has no holes. A slit of no width from the outline to the hole and back encloses nothing,
    # and both directions rasterise to the same points, so that they cancel out.
    path = [*outline, outline[0]]
    for hole in holes:
        path += [*hole, hole[0], outline[0]]
    return [coordinate for vertex in path[:-1] for coordinate in vertex]


def _boundary_loops(fragment: np.ndarray) -> list[list[Vertex]]:
    """Corner vertices of every closed boundary of a 4-connected fragment, the outline first."""
    exits = _boundary_edges(fragment)
    loops = []
    while exits:
        # The leftmost vertex is a corner, and at first it lies on the outline.
        loops.append(_walk(exits, min(exits)))
    return loops


def _boundary_edges(fragment: np.ndarray) -> dict[Vertex, list[Vertex]]:
    """Start vertex to directions (dx, dy) of unit edges, foreground on the right-hand side."""
    padded = np.pad(fragment, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # background above: left to right
        (padded[1:-1, 2:], (1, 0), (0, 1)),  # to the right: downwards
        (padded[2:, 1:-1], (1, 1), (-1, 0)),  # below: right to left
        (padded[1:-1, :-2], (0, 1), (0, -1)),  # to the left: upwards
    )
    exits: dict[Vertex, list[Vertex]] = {}
    for neighbour, (dx, dy), direction in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist()):
            exits.setdefault((x, y), []).append(direction)
    return exits


def _walk(exits: dict[Vertex, list[Vertex]], start: Vertex) -> list[Vertex]:
    """Follows one boundary, removes its edges from `exits` and returns its corners."""
    corners: list[Vertex] = []
    vertex, heading = start, None
    while True:
        direction = _take_exit(exits, vertex, heading)
        if direction != heading:
            corners.append(vertex)
        heading = direction
        vertex = (vertex[0] + direction[0], vertex[1] + direction[1])
        if vertex == start:
            return corners


def _take_exit(
    exits: dict[Vertex, list[Vertex]],
    vertex: Vertex,
    heading: Vertex | None,
) -> Vertex:
    choices = exits[vertex]
    if len(choices) == 1:
        return exits.pop(vertex)[0]
    # Two foreground pixels touch at this corner only. Turning right stays with the same pixel, so
    # that no two loops share a vertex and a slit never has length zero.
    right = (-heading[1], heading[0])
    choices.remove(right)
    return right
