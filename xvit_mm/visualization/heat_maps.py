"""Maps of weights over their image, as one picture with titles."""
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from xvit_mm.utils.files import replaced_whole

_PANEL = 3.2  # inches
_OPACITY = 0.75  # of the greatest weight; the image shows through where weights are small
_FAINTEST = 0.4  # share of that for the least weight
_EVEN = 1.01  # greatest by least weight, up to which a map is even
_GAMMA = 0.6  # large weights are rare: small ones are lifted


def write_heat_maps(
    path: str | Path,
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    *,
    title: str = '',
    pixel: tuple[float, float] | None = None,
    columns: int = 4,
) -> None:
    """Write an image and, over faded copies of it, maps of weights as one PNG.

    Args:
        path: of the picture; it appears when it is complete.
        image: [H, W, 3] of uint8 in RGB.
        maps: by title, [h, w] of at least 0. Each has a scale of its own from its least to its
            greatest weight, pale yellow to red, which stand below its title; 0 and NaN show the
            image alone. Where they differ by less than 1 %, all is pale and the title says even.
        title: above all.
        pixel: (x, y) as shares of width and height, marked by a ring.
        columns: panels in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    columns = min(columns, len(maps) + 1)
    rows = math.ceil((len(maps) + 1) / columns)
    height, width = image.shape[:2]
    figure = Figure(figsize=(columns * _PANEL, rows * (_PANEL * height / width + 0.5) + 0.4),
                    dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    panels[0].set_title('image', fontsize=9)
    panels[0].imshow(image)
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2) / 255
    for panel, (name, weights) in zip(panels[1:], maps.items()):
        values = weights.float().cpu().numpy()
        seen = values[np.nan_to_num(values) > 0]
        least, greatest = (seen.min(), seen.max()) if seen.size else (0., 1.)
        is_even = greatest < _EVEN * least and seen.size == values.size
        shares = np.zeros_like(values) if is_even else np.ones_like(values) if (
            least == greatest) else ((values - least) / (greatest - least)).clip(0)**_GAMMA
        opacity = _OPACITY * np.maximum(np.nan_to_num(shares), _FAINTEST) * (
            np.nan_to_num(values) > 0)
        panel.imshow(0.5 * grey + 0.5)
        panel.imshow(np.nan_to_num(shares), cmap='YlOrRd', vmin=0, vmax=1, alpha=opacity,
                     extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation='nearest')
        scale = f'even, {least:.2g}' if is_even else f'{least:.2g} to {greatest:.2g}'
        panel.set_title(f'{name}\n{scale}', fontsize=9)
    for panel in panels:
        panel.set_axis_off()
        if pixel is not None and panel in panels[:len(maps) + 1]:
            panel.plot(pixel[0] * width, pixel[1] * height, 'o', color='#0050ff', markersize=11,
                       markerfacecolor='none', markeredgewidth=1.5)
    figure.suptitle(title, fontsize=10)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path) as partial:
        figure.savefig(partial, format='png')
