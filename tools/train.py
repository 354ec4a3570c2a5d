"""Train a detector, segmentor or classifier.

    python tools/train.py configs/retinanet_crossformer_s_coco.py --data-root data/coco
"""
from xvit_mm.apis import build_runner
from xvit_mm.apis.command_line import (add_own_data, apply_own_data, common_arguments, config_of,
                                       run_tool)
from xvit_mm.utils.config import check_data, use_amp, use_auto_scale_lr, use_pretrained, use_resume


def main() -> None:
    parser = common_arguments('Train a detector, segmentor or classifier.')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path from the latest in the work dir')
    parser.add_argument('--pretrained', metavar='CHECKPOINT',
                        help="weights for the backbone, official ones as released; 'official': the "
                        "authors' for this backbone, downloaded once")
    parser.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    add_own_data(parser)
    arguments = parser.parse_args()

    cfg = config_of(arguments)
    apply_own_data(cfg, arguments)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if arguments.amp:
        use_amp(cfg)
    if arguments.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if arguments.pretrained:
        use_pretrained(cfg, arguments.pretrained)
    if arguments.resume:
        use_resume(cfg, None if arguments.resume == 'auto' else arguments.resume)
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main, resumable=True)
