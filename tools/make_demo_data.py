"""Make the generated data set of the quick start, in COCO's layout, in half a minute.

    python tools/make_demo_data.py --root data/demo --train 1600 --val 80 --seed 0
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from xvit_mm.datasets.shapes import METAINFO, make_shapes_dataset


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--root', type=Path, default=Path('data/demo'), help='folder of the set')
    parser.add_argument('--train', type=int, default=1600, help='number of training images')
    parser.add_argument('--val', type=int, default=80, help='number of validation images')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        is_new = make_shapes_dataset(
            args.root, num_train=args.train, num_val=args.val, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f'make_demo_data: {error}', file=sys.stderr)
        return 1
    print(f'{args.root}: {"made" if is_new else "there already, nothing to do"}')
    for path in sorted((args.root / 'annotations').glob('*.json')):
        content = json.loads(path.read_text())
        print(f'  {path.stem.removeprefix("instances_")}: {len(content["images"])} images, '
              f'{len(content["annotations"])} objects')
    print(f'  classes: {", ".join(METAINFO["classes"])}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
