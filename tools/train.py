"""Train a detector, segmentor or classifier.

    python tools/train.py configs/retinanet_crossformer_s_coco.py --data-root data/coco
"""
from xvit_mm.engine.config import (ConfigError, check_data, use_amp, use_auto_scale_lr,
                                   use_pretrained)
from xvit_mm.engine.own_data import use_own_data
from xvit_mm.engine.tool import build_runner, common_arguments, config_of, run_tool


def main() -> None:
    parser = common_arguments('Train a detector, segmentor or classifier.')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path from the latest in the work dir')
    parser.add_argument('--pretrained', metavar='CHECKPOINT',
                        help='weights for the backbone, official ones as released')
    parser.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument(
        '--own-data', metavar='FOLDER',
        help="another data set than the config's: COCO's format, images and labels, or a folder "
        'for each class; sets classes and heads')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='with --own-data for segmentation: names, if there is no classes.txt')
    parser.add_argument('--ignore-index', type=int, metavar='LABEL',
                        help='with --own-data for segmentation: the label of unlabelled pixels')
    arguments = parser.parse_args()

    cfg = config_of(arguments)
    if arguments.own_data:
        use_own_data(cfg, arguments.own_data, classes=arguments.classes,
                     ignore_index=arguments.ignore_index)
    elif arguments.classes or arguments.ignore_index is not None:
        raise ConfigError('--classes and --ignore-index go with --own-data')
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if arguments.amp:
        use_amp(cfg)
    if arguments.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if arguments.pretrained:
        use_pretrained(cfg, arguments.pretrained)
    if arguments.resume:
        cfg.resume = True
        cfg.load_from = None if arguments.resume == 'auto' else arguments.resume
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main, resumable=True)
