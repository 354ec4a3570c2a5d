"""Run the tests, after setting up the environment if that has not happened yet.

    python3 tools/selftest.py                        what CI runs
    python3 tools/selftest.py --quick                without what trains or exports: 1 to 2 minutes
    python3 tools/selftest.py --all                  also what takes minutes each
    python3 tools/selftest.py --stack upstream       with upstream's packages, in .venv-upstream
    python3 tools/selftest.py -k crossformer -x      options of pytest, files, folders, tests

Runs in two processes; `-n 0` is one, which a debugger needs, and `-n 8` eight, with 3 GB each.
Takes 5 to 20 minutes more the first time, for the set-up.
"""
import os
import sys
from collections.abc import Sequence

import environment
from bootstrap.stacks import ROOT


def read_arguments(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the key of the stack and the arguments for pytest; a mistake ends the program."""
    parser = environment.make_parser(
        __doc__, usage='selftest.py [--stack STACK] [--quick | --all] [options of pytest]',
        allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--quick', action='store_const', dest='mark',
                       const=['-m', 'not slow and not training'],
                       help='without what trains, exports or starts programs')
    which.add_argument('--all', action='store_const', dest='mark', const=['-m', ''],
                       help='slow tests too')
    args, rest = parser.parse_known_args([argument for argument in argv if argument != '--'])
    for path in (argument.partition('::')[0] for argument in rest):
        if path.endswith('.py') and not (ROOT / path).exists():
            parser.error(f'there is no {path} (from {ROOT})')
    return args.stack, ['-n', '2', '--dist', 'worksteal', *(args.mark or ()), *rest]


def main() -> int:
    """Set up, then become pytest."""
    key, arguments = read_arguments(sys.argv[1:])
    os.chdir(ROOT)
    stack = environment.ensure(key)
    command = [str(stack.python), '-m', 'pytest', *arguments]
    print(f'Running: {" ".join(command)}\n', flush=True)
    os.execve(command[0], command, stack.variables())


if __name__ == '__main__':
    sys.exit(environment.run_guarded(main))
