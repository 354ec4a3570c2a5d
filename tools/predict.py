"""Predict for images, videos or a webcam: annotated pictures, and the predictions as files.

    python tools/predict.py CONFIG CHECKPOINT images/ clip.mp4 'more/*.png' --out predictions
    python tools/predict.py retinanet_crossformer_s_coco official street.jpg --out predictions
"""
import sys

from xvit_mm.apis.command_line import config_arguments, run_tool
from xvit_mm.apis.predict import predict_files
from xvit_mm.utils.config import load_config


def main() -> None:
    parser = config_arguments(
        'Predict for images, videos or a webcam: annotated pictures, and the predictions as files.')
    parser.add_argument('checkpoint', help="your own, or official as released; 'official': "
                        "the authors' for this config, downloaded once")
    parser.add_argument('inputs', nargs='+', metavar='INPUT',
                        help='image, video, folder, pattern in quotation marks, or webcam number')
    parser.add_argument('--out', metavar='FOLDER', required=True, help='where to write')
    parser.add_argument('--device', help='as cuda:0 or cpu; default the best one there is')
    parser.add_argument('--batch-size', type=int, default=1, help='images to compute at once')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='boxes with a lower score are neither drawn nor written')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='keep only these classes')
    arguments = parser.parse_args()

    cfg = load_config(arguments.config, arguments.cfg_options)
    result = predict_files(
        cfg, arguments.checkpoint, arguments.inputs, arguments.out, device=arguments.device,
        batch_size=arguments.batch_size, score_thr=arguments.score_thr, classes=arguments.classes)
    images = 'image' if result.num_images == 1 else 'images'
    print(f'{result.num_images} {images} predicted; results in {arguments.out}')
    for line in result.broken:
        sys.stderr.write(f'skipped: {line}\n')
    if result.broken:
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
