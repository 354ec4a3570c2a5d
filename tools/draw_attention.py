"""Draw what a backbone attends to, and its effective receptive field, over images.

    python tools/draw_attention.py CONFIG CHECKPOINT IMAGE ... --out pictures --pixel 320 240

CrossFormer: short- and long-distance attention (SDA, LDA) of the token at a pixel. CrossViT: what
the class tokens read of each other's patches. XFormer: the scores of XFA. VT-ResNet and VT-FPN:
where each visual token looks.
"""
from xvit_mm.apis.attention_pictures import WAYS, write_attention_pictures
from xvit_mm.apis.command_line import config_arguments, run_tool
from xvit_mm.utils.config import ConfigError, load_config


def main(default_ways: tuple[str, ...] = WAYS) -> None:
    parser = config_arguments(
        'Draw what a backbone attends to, and its effective receptive field, over images.')
    parser.add_argument('checkpoint', help='your own, or official as released')
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--out', '--out-dir', metavar='FOLDER', required=True, dest='out')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=default_ways,
                        help='what to draw')
    parser.add_argument('--pixel', type=float, nargs=2, metavar=('X', 'Y'),
                        help="CrossFormer's query and the place of the receptive field, in pixels "
                        'of the image; default its centre')
    parser.add_argument('--columns', type=int, default=4, help='panels in a row of a picture')
    parser.add_argument('--device', help='as cuda:0 or cpu; default the best one there is')
    arguments = parser.parse_args()
    if arguments.columns < 1:
        raise ConfigError(f'--columns {arguments.columns}: give at least 1')

    cfg = load_config(arguments.config, arguments.cfg_options)
    for path in write_attention_pictures(
            cfg, arguments.checkpoint, arguments.images, arguments.out, ways=arguments.ways,
            pixel=tuple(arguments.pixel) if arguments.pixel else None, columns=arguments.columns,
            device=arguments.device):
        print(path)


if __name__ == '__main__':
    run_tool(main)
