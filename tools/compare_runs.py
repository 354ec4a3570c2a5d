"""Losses and metrics of several runs, as one PNG and a table in the terminal.

    python tools/compare_runs.py work_dirs/first work_dirs/second --out compared.png
"""
import argparse

from rich.console import Console

from xvit_mm.apis.command_line import run_tool
from xvit_mm.apis.compare_runs import comparison_table, draw_comparison, read_runs
from xvit_mm.engine.hooks.curves import MAIN_METRICS


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Losses and metrics of several runs, as one PNG and a table in the terminal.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR')
    parser.add_argument('--out', metavar='FILE.png', default='compared_runs.png')
    parser.add_argument('--metrics', nargs='+', metavar='PATTERN', default=MAIN_METRICS,
                        help='regular expressions of the metrics to show')
    arguments = parser.parse_args()

    runs = read_runs(arguments.work_dirs)
    draw_comparison(runs, arguments.out, arguments.metrics)
    Console().print(comparison_table(runs, arguments.metrics))
    print(arguments.out)


if __name__ == '__main__':
    run_tool(main)
