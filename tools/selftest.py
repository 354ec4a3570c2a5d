"""Run the tests, after setting up the environment if that has not happened yet.

    python3 tools/selftest.py                        what CI runs
    python3 tools/selftest.py --quick                without what trains or exports: 2 minutes
    python3 tools/selftest.py --all                  also what takes minutes each
    python3 tools/selftest.py --stack upstream       with upstream's packages, in .venv-upstream
    python3 tools/selftest.py -k crossformer -x      options of pytest, files, folders, tests
    python3 tools/selftest.py -- --lf                after `--`: any other options of pytest

Runs in two processes; `-n 0` is one, which a debugger needs, and `-n 8` eight, with 3 GB each.
Takes 5 to 20 minutes more the first time, for the set-up.
"""
import argparse
import os
import sys
from collections.abc import Sequence

import environment
from bootstrap import stacks


def read_arguments(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Key of the stack and the arguments for pytest; a mistake ends the program."""
    argv, separator, rest = _split(argv)
    parser = argparse.ArgumentParser(
        usage='selftest.py [options] [tests ...] [-- options of pytest]', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    environment.add_stack(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--quick', action='store_const', dest='m', const='not slow and not training',
                       help='without what trains, exports or starts programs')
    which.add_argument('--all', action='store_const', dest='m', const='',
                       help='slow tests too')
    which.add_argument('-m', help='tests with these markers')
    parser.add_argument('-k', help='tests whose name matches')
    parser.add_argument('-n', default='2', help='processes (default: %(default)s)')
    for option in ('maxfail', 'durations', 'tb'):
        parser.add_argument(f'--{option}', help='as for pytest')
    for option in 'xqvs':
        parser.add_argument(f'-{option}', action='count', default=0, help='as for pytest')
    parser.add_argument('tests', nargs='*', help='files, folders or single tests')
    args = parser.parse_args(argv)
    for test in args.tests:
        if not os.path.exists(stacks.ROOT / test.split('::')[0]):
            parser.error(f'there is no {test.split("::")[0]} (from {stacks.ROOT})')
    given = ['-n', args.n, '--dist', 'worksteal']
    for name in ('m', 'k', 'maxfail', 'durations', 'tb'):
        if getattr(args, name) is not None:
            given += ['-' * min(2, len(name)) + name, getattr(args, name)]
    given += [f'-{option * getattr(args, option)}' for option in 'xqvs' if getattr(args, option)]
    return args.stack, [*given, *rest, *(args.tests or ['tests'])]


def _split(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    at = argv.index('--') if '--' in argv else len(argv)
    return list(argv[:at]), at < len(argv), list(argv[at + 1:])


def main() -> int:
    """Set up, then become pytest."""
    key, arguments = read_arguments(sys.argv[1:])
    os.chdir(stacks.ROOT)
    stack = environment.ensure(key)
    command = [str(stack.python), '-m', 'pytest', *arguments]
    print(f'Running: {" ".join(command)}\n', flush=True)
    os.execve(command[0], command, stack.variables())
    return 1


if __name__ == '__main__':
    sys.exit(environment.guarded(main))
