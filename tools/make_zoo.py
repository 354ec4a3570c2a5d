"""The model zoo: docs/model_zoo.md, model-index.yml and the metafiles, from configs and results.

    python tools/make_zoo.py                  # measures every model, some minutes
    python tools/make_zoo.py --keep-costs     # after an edit of configs/results.yml, some seconds
"""
import argparse
from pathlib import Path

import torch

from xvit_mm.apis.command_line import run_tool
from xvit_mm.utils.complexity import Cost
from zoo import write_zoo

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the page and the metafiles of the model zoo.')
    parser.add_argument(
        '--keep-costs', action='store_true',
        help='keep the parameters and MACs that are there, measure only new configs')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for path in write_zoo(ROOT, keep_costs=arguments.keep_costs, report=show):
        print(path)


def show(name: str, cost: Cost) -> None:
    print(f'{name:<48}{cost.parameters:>14,}{cost.macs / 1e9:>10.3f} G', flush=True)


if __name__ == '__main__':
    run_tool(main)
