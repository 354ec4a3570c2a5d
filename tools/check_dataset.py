"""Check the data of a config: layout, counts, classes, labels; a few samples drawn.

    python tools/check_dataset.py configs/fpn_crossformer_s_ade20k.py --data-root FOLDER
    python tools/check_dataset.py configs/retinanet_crossformer_s_coco.py --own-data FOLDER
"""
import argparse
from pathlib import Path

from mmengine.config import DictAction

from xvit_mm.datasets.checking import check_datasets
from xvit_mm.engine.config import load_config
from xvit_mm.engine.own_data import use_own_data
from xvit_mm.engine.tool import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Check the data of a config; the first problem is named with its remedy.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='path of a config, or the name of one that ships')
    parser.add_argument('--data-root', help="folder of the data set, instead of the config's")
    parser.add_argument('--own-data', metavar='FOLDER',
                        help='data of your own, as for tools/train.py')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='with --own-data for segmentation: names, if there is no classes.txt')
    parser.add_argument('--ignore-index', type=int, metavar='LABEL',
                        help='with --own-data for segmentation: the label of unlabelled pixels')
    parser.add_argument('--out', help='folder for the drawn samples; by default '
                        'work_dirs/check_dataset/CONFIG')
    parser.add_argument('--samples', type=int, default=4, help='samples of each split to draw')
    parser.add_argument('--max-files', type=int, default=500,
                        help='images or label maps of each split to open; all are looked for')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='NAME=VALUE',
        help='entries of the config to set')
    arguments = parser.parse_args()

    cfg = load_config(arguments.config, arguments.cfg_options, data_root=arguments.data_root)
    if arguments.own_data:
        use_own_data(cfg, arguments.own_data, classes=arguments.classes,
                     ignore_index=arguments.ignore_index)
    folder = arguments.out or f'work_dirs/check_dataset/{Path(arguments.config).stem}'
    lines = check_datasets(
        cfg, folder, num_samples=arguments.samples, max_files=arguments.max_files)
    for line in lines:
        print(line, flush=True)
    print('no problem found')


if __name__ == '__main__':
    run_tool(main)
