"""Put an xvit_mm backbone into a config of mmdet, mmseg, mmpretrain or mmrotate.

    python tools/swap_backbone.py my_config.py --backbone xvit_mm.CrossFormer --arch s --out new.py

The new config inherits from yours, holds only the changes and explains each.
"""
import argparse

from xvit_mm.apis.command_line import Options, run_tool
from xvit_mm.swap import Swap, swap_backbone
from xvit_mm.swap.backbones import BACKBONES


def main() -> None:
    arguments = parse_arguments()
    backbone = dict(type=arguments.backbone)
    if arguments.arch:
        backbone['arch'] = arguments.arch
    backbone |= arguments.backbone_options or {}
    print(summary(swap_backbone(
        arguments.config, backbone, arguments.out, checkpoint=arguments.checkpoint,
        keep_optimizer=arguments.keep_optimizer, force=arguments.force, trial=arguments.trial)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Put an xvit_mm backbone into a config of mmdet, mmseg, mmpretrain or '
        'mmrotate.')
    parser.add_argument('config', help='your config')
    parser.add_argument('--backbone', required=True, metavar='TYPE',
                        help=f'one of {", ".join(BACKBONES)}')
    parser.add_argument('--arch', metavar='NAME',
                        help='variant: s, tiny, r50, ... (default: s for CrossFormer and XFormer, '
                        'small for CrossViT, r18 for VTResNet)')
    parser.add_argument('--backbone-options', nargs='+', action=Options, metavar='NAME=VALUE',
                        help='further arguments, as drop_path_rate=0.3 with_cp=True')
    parser.add_argument('--out', required=True, metavar='NEW_CONFIG', help='where to write')
    parser.add_argument('--checkpoint', metavar='FILE',
                        help='weights for the backbone, official ones as released')
    parser.add_argument('--keep-optimizer', action='store_true',
                        help='leave optimizer and schedule as they are')
    parser.add_argument('--force', action='store_true', help='overwrite NEW_CONFIG')
    parser.add_argument(
        '--no-trial', dest='trial', action='store_false',
        help='write without a training step and a prediction on random images')
    return parser.parse_args()


def summary(swap: Swap) -> str:
    trial = 'not tried' if swap.trial is None else \
        f'one training step (loss {swap.trial.loss:.4g}) and one prediction ran'
    return f'{swap.path}: {swap.new} in place of {swap.old}; {trial}'


if __name__ == '__main__':
    run_tool(main)
