"""Export a model, or a part of it, for any batch and image size, and check the file.

    python tools/export.py CONFIG CHECKPOINT --out model.onnx
    python tools/export.py CONFIG CHECKPOINT --out model.pt2
    python tools/export.py retinanet_crossformer_s_coco official --part raw --out retinanet.onnx
"""
from xvit_mm.apis.command_line import config_arguments, run_tool
from xvit_mm.apis.export import SIZE, export_model
from xvit_mm.apis.export_parts import PARTS
from xvit_mm.utils.config import load_config


def main() -> None:
    parser = config_arguments(
        'Export a model, or a part of it, for any batch and image size: to ONNX or torch.export.')
    parser.add_argument('checkpoint', nargs='?',
                        help="your own, or official as released; 'official': the authors' for "
                        'this config; random weights without it')
    parser.add_argument('--out', metavar='FILE', required=True,
                        help='where to write: .onnx, or .pt2 for a program of torch.export')
    parser.add_argument(
        '--part', choices=PARTS, default='all',
        help='backbone: its maps; raw: what the heads say; all: scores, logits at the size of the '
        'images, or boxes before NMS')
    parser.add_argument('--size', type=int, nargs=2, default=SIZE, metavar=('HEIGHT', 'WIDTH'),
                        help='of the image that the exporter sees')
    parser.add_argument('--opset', type=int, help='default 17, or 18 with --dynamo')
    parser.add_argument('--dynamo', action='store_true', help="torch's new exporter to ONNX")
    parser.add_argument('--int8', action='store_true',
                        help='weights of linear layers in 8 bits, in an .onnx file')
    parser.add_argument('--fp16', action='store_true',
                        help='weights and maps in 16 bits, in an .onnx file')
    arguments = parser.parse_args()

    cfg = load_config(arguments.config, arguments.cfg_options)
    for deviation in export_model(
            cfg, arguments.checkpoint, arguments.out, part=arguments.part,
            size=tuple(arguments.size), opset=arguments.opset, dynamo=arguments.dynamo,
            int8=arguments.int8, fp16=arguments.fp16):
        print(deviation)
    print(f'{arguments.out}: checked'
          + ('' if arguments.checkpoint else '; the weights are random'))


if __name__ == '__main__':
    run_tool(main)
