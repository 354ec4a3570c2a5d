"""Evaluate a checkpoint, official ones as released included.

    python tools/test.py configs/retinanet_crossformer_s_coco.py CHECKPOINT --data-root data/coco
    python tools/test.py configs/retinanet_crossformer_s_coco.py official --data-root data/coco
"""
from pathlib import Path

from mmengine.dist import get_rank

from xvit_mm.apis import build_runner
from xvit_mm.apis.command_line import common_arguments, config_of, run_tool
from xvit_mm.apis.published import compare_with_paper
from xvit_mm.engine.allocator import keep_freed_memory_on_cpu
from xvit_mm.utils.config import check_data
from xvit_mm.utils.config_options import (dump_predictions, show_pictures, use_checkpoint,
                                          use_compile, use_fast_inference, use_tta)
from xvit_mm.utils.files import check_writable


def main() -> None:
    parser = common_arguments('Evaluate a detector, segmentor or classifier.')
    parser.add_argument('checkpoint', help="a file or address, of this package or official as "
                        "released; 'official': the authors' for this config, downloaded once")
    parser.add_argument('--out', metavar='FILE.pkl', help='write all predictions there')
    parser.add_argument('--show-dir', metavar='FOLDER',
                        help='draw every prediction beside its ground truth there; of several '
                        'processes, only the first draws its share')
    parser.add_argument('--as-built', action='store_true',
                        help='on a CPU, do not fold BatchNorm and compute channels last')
    parser.add_argument('--compile', action='store_true',
                        help='compile the backbone by torch.compile, at the first images; on a CPU '
                        'with the weights as constants')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    arguments = parser.parse_args()

    cfg = config_of(arguments)
    check_data(cfg, 'test_dataloader')
    check_writable(cfg.work_dir, '--work-dir')
    if arguments.show_dir:
        check_writable(arguments.show_dir, '--show-dir')
    if arguments.out:
        dump_predictions(cfg, arguments.out)
        check_writable(Path(arguments.out).parent, '--out')
    use_checkpoint(cfg, arguments.checkpoint)
    if arguments.tta:
        use_tta(cfg)
    if arguments.show_dir:
        show_pictures(cfg, arguments.show_dir)
    if not arguments.as_built:
        use_fast_inference(cfg)
    if arguments.compile:
        use_compile(cfg, testing=True)
    keep_freed_memory_on_cpu(arguments.allocator)
    metrics = build_runner(cfg).test()
    if get_rank() == 0 and (line := compare_with_paper(
            metrics, cfg.load_from, tta=arguments.tta)):
        print(line)


if __name__ == '__main__':
    run_tool(main)
