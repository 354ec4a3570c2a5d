"""Check the data of a config: layout, counts, classes, labels; a few samples drawn.

    python tools/check_dataset.py configs/fpn_crossformer_s_ade20k.py --data-root FOLDER
    python tools/check_dataset.py configs/retinanet_crossformer_s_coco.py --own-data FOLDER
"""
from pathlib import Path

from xvit_mm.apis.command_line import (add_data_root, add_own_data, apply_own_data,
                                       config_arguments, run_tool)
from xvit_mm.datasets.checking import check_datasets
from xvit_mm.utils.config import ConfigError, load_config


def main() -> None:
    parser = config_arguments(
        'Check the data of a config; the first problem is named with its remedy.')
    add_data_root(parser)
    add_own_data(parser)
    parser.add_argument('--out', help='folder for the drawn samples; by default '
                        'work_dirs/check_dataset/CONFIG')
    parser.add_argument('--samples', type=int, default=4, help='samples of each split to draw')
    parser.add_argument('--max-files', type=int, default=500,
                        help='images or label maps of each split to open; all are looked for')
    arguments = parser.parse_args()
    for name, least in (('samples', 0), ('max_files', 1)):
        if (count := getattr(arguments, name)) < least:
            raise ConfigError(f'--{name.replace("_", "-")} {count}: give at least {least}')

    cfg = load_config(arguments.config, arguments.cfg_options, data_root=arguments.data_root)
    apply_own_data(cfg, arguments)
    folder = arguments.out or f'work_dirs/check_dataset/{Path(arguments.config).stem}'
    lines = check_datasets(
        cfg, folder, num_samples=arguments.samples, max_files=arguments.max_files)
    for line in lines:
        print(line, flush=True)
    print('no problem found')


if __name__ == '__main__':
    run_tool(main)
