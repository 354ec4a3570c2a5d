"""The old name of tools/draw_attention.py, for the visual tokens of VT-ResNet and VT-FPN."""
import sys
from functools import partial

from draw_attention import main
from xvit_mm.apis.command_line import run_tool

if __name__ == '__main__':
    sys.stderr.write('tools/draw_tokens.py is now called tools/draw_attention.py\n')
    run_tool(partial(main, default_ways=('attention',)))
