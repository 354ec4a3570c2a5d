"""The programs of tools/, run without the seconds that the imports of a new process take."""
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a program ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_tool(name: str, *arguments: object) -> Ended:
    """Run a tool in a fork of this process, with standard output and error of its own."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, file) for file in ('stdout', 'stderr')]
        process = multiprocessing.get_context('fork').Process(
            target=_become, args=(name, [*map(str, arguments)], files))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        return Ended(process.exitcode, *(file.read_text() for file in files))


def _become(name: str, arguments: list[str], files: list[Path]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1) for number in (1, 2))
    MMLogger._instance_dict.clear()  # they hold the streams of this process
    os.chdir(ROOT)
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    path = str(ROOT / 'tools' / f'{name}.py')
    sys.argv = [path, *arguments]
    code = 0
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
