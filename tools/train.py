"""Train a detector, segmentor or classifier.

    python tools/train.py configs/retinanet_crossformer_s_coco.py --data-root data/coco
"""
from mmengine.dist import get_rank

from xvit_mm.apis import build_runner
from xvit_mm.apis.command_line import (add_own_data, apply_own_data, common_arguments, config_of,
                                       run_tool)
from xvit_mm.engine.allocator import keep_freed_memory_on_cpu
from xvit_mm.utils.config import check_data
from xvit_mm.utils.config_options import (check_no_training, remove_training, use_amp,
                                          use_auto_scale_lr, use_compile, use_pretrained,
                                          use_resume, use_tracker)
from xvit_mm.utils.files import check_writable


def main() -> None:
    parser = common_arguments('Train a detector, segmentor or classifier.')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path from the newest in the work dir that can be '
        'read')
    parser.add_argument('--overwrite', action='store_true',
                        help='begin again in a work dir that holds checkpoints, which are removed; '
                        'with --resume: only if none of them can be read')
    parser.add_argument('--pretrained', metavar='CHECKPOINT',
                        help="weights for the backbone, official ones as released; 'official': the "
                        "authors' for this backbone, downloaded once")
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision, on a GPU or on a CPU with bfloat16 instructions')
    parser.add_argument('--compile', action='store_true',
                        help='compile the backbone by torch.compile, at the first images')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--tensorboard', action='store_true',
                        help='log to TensorBoard too, below the work dir')
    parser.add_argument('--wandb', action='store_true', help='log to Weights & Biases too')
    add_own_data(parser)
    arguments = parser.parse_args()

    cfg = config_of(arguments)
    apply_own_data(cfg, arguments)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    for tracker in ('tensorboard', 'wandb'):
        if getattr(arguments, tracker):
            use_tracker(cfg, tracker)
    if arguments.amp:
        use_amp(cfg)
    if arguments.compile:
        use_compile(cfg)
    if arguments.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if arguments.pretrained:
        use_pretrained(cfg, arguments.pretrained)
    if arguments.resume:
        use_resume(cfg, None if arguments.resume == 'auto' else arguments.resume)
    if not arguments.overwrite:
        check_no_training(cfg)
    check_writable(cfg.work_dir, '--work-dir')
    keep_freed_memory_on_cpu(arguments.allocator)
    runner = build_runner(cfg)
    runner.may_start_over = arguments.overwrite
    if arguments.overwrite and not cfg.get('resume') and get_rank() == 0:
        # Not before the config has proved to be sound.
        remove_training(cfg.work_dir)
    runner.train()


if __name__ == '__main__':
    run_tool(main, resumable=True)
