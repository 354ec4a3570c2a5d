"""Parameters and multiply-adds of the model of a config, by part.

    python tools/get_flops.py configs/retinanet_crossformer_s_coco.py --shape 800 1280
"""
from mmengine.config import Config

from xvit_mm.apis import build_model
from xvit_mm.apis.command_line import config_arguments, run_tool
from xvit_mm.utils.complexity import Cost, measure_cost
from xvit_mm.utils.config import ConfigError, load_config

# The sizes that papers quote for detection, segmentation and classification.
USUAL_SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 512), 'mmpretrain': (224, 224)}


def main() -> None:
    parser = config_arguments('Parameters and multiply-adds of a model.')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='PIXELS',
        help='height and width, or one side; by default the usual size of the task')
    arguments = parser.parse_args()

    cfg = load_config(arguments.config, arguments.cfg_options)
    shape = checked_shape(arguments.shape) or usual_shape(cfg)
    cost = measure_cost(build_model(cfg), shape)
    print(f'{cfg.model.type} at {shape[0]} x {shape[1]}')
    print(table(cost))


def checked_shape(shape: list[int] | None) -> tuple[int, int] | None:
    if shape is not None and (len(shape) > 2 or min(shape) < 1):
        raise ConfigError(f'--shape {" ".join(map(str, shape))}: give height and width in pixels')
    return (shape[0], shape[-1]) if shape else None


def usual_shape(cfg: Config) -> tuple[int, int]:
    scope = cfg.get('default_scope')
    if scope not in USUAL_SHAPES:
        raise ConfigError(f'no usual size for default_scope={scope!r}: give --shape HEIGHT WIDTH')
    return USUAL_SHAPES[scope]


def table(cost: Cost) -> str:
    """One line for each part and one for the whole."""
    lines = [f'{"part":<16}{"parameters":>14}{"GMACs":>12}']
    for name, part in {**cost.parts, 'total': cost}.items():
        lines.append(f'{name:<16}{part.parameters:>14,}{part.macs / 1e9:>12.3f}')
    return '\n'.join(lines)


if __name__ == '__main__':
    run_tool(main)
