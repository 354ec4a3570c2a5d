"""Draw where each visual token looks, over images, as in the figures of the VT paper.

    python tools/draw_tokens.py CONFIG CHECKPOINT IMAGE ... --out-dir work_dirs/tokens

For models with the backbone xvit_mm.VTResNet or the neck xvit_mm.VTFPN.
"""
from xvit_mm.apis.command_line import config_arguments, run_tool
from xvit_mm.apis.token_pictures import write_token_pictures
from xvit_mm.utils.config import ConfigError, load_config


def main() -> None:
    parser = config_arguments('Draw where each visual token looks.')
    parser.add_argument('checkpoint', help='of a training, or an official one as released')
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--out-dir', metavar='FOLDER', required=True)
    parser.add_argument('--columns', type=int, default=4, help='tokens in a row of a picture')
    arguments = parser.parse_args()
    if arguments.columns < 1:
        raise ConfigError(f'--columns {arguments.columns}: give at least 1')

    cfg = load_config(arguments.config, arguments.cfg_options)
    for path in write_token_pictures(cfg, arguments.checkpoint, arguments.images,
                                     arguments.out_dir, columns=arguments.columns):
        print(path)


if __name__ == '__main__':
    run_tool(main)
