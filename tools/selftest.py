"""Runs the tests, after setting up the environment if that has not happened yet.

    python3 tools/selftest.py                        all tests
    python3 tools/selftest.py -k crossformer -x      any arguments of pytest

Runs in two processes; `-n 0` is one, which a debugger needs, and `-n 8` eight, with 3 GB each.
Takes 5 to 20 minutes more the first time, for the set-up.
"""
import os
import sys
from typing import List

import environment
from bootstrap import stack
from bootstrap.project_env import run_variables


def names_tests(argument: str) -> bool:
    """Whether an argument of pytest is a file, a folder or one test."""
    return not argument.startswith('-') and os.path.exists(argument.split('::')[0])


def pytest_command(python: str, arguments: List[str]) -> List[str]:
    """pytest on the given tests, on tests/ if none are given."""
    tests = [] if any(map(names_tests, arguments)) else [str(stack.ROOT / 'tests')]
    return [python, '-m', 'pytest', '-n', '2', '--dist', 'worksteal'] + arguments + tests


def main() -> int:
    """Sets up, then becomes pytest."""
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    os.chdir(str(stack.ROOT))
    command = pytest_command(str(environment.ensure()), sys.argv[1:])
    print('Running: {}\n'.format(' '.join(command)), flush=True)
    os.execve(command[0], command, run_variables())
    return 1


if __name__ == '__main__':
    sys.exit(environment.guarded(main))
