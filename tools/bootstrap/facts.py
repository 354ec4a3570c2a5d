"""What is known of an interpreter: gathered by probe.py in a child process."""
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bootstrap.stacks import STACKS, Stack, families, normal


class Facts(NamedTuple):
    """What the probe of one interpreter gave; `modules` holds the record of each import."""

    python: str
    version: tuple[int, ...]
    distributions: dict[str, str]
    modules: dict[str, dict[str, Any]]

    @property
    def stack(self) -> Stack | None:
        """The stack of the one family here, best with the same mmcv; None with both or without."""
        same = [one for one in STACKS.values() if [one.family] == [*families(self.distributions)]]
        here = [one for one in same if one.pins[one.mmcv] == self.distributions.get(one.mmcv)]
        return next(iter(here + same), None)

    @property
    def project_stack(self) -> Stack | None:
        """The stack whose environment, made by environment.py, this is."""
        folder = Path(self.python).absolute().parent
        return next((one for one in STACKS.values() if one.python.parent == folder), None)


def gather(python: str, names: Sequence[str], env: dict[str, str] | None = None) -> Facts:
    """Probe an interpreter; a module that kills the child is noted, the rest still probed.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    probe = str(Path(__file__).with_name('probe.py'))
    records: list[dict[str, Any]] = []
    while len(records) < len(names):
        try:
            done = subprocess.run([python, probe, *names[len(records):]], env=env, text=True,
                                  capture_output=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f'{python} does not run: {error}') from None
        lines = [line for line in done.stdout.splitlines() if line.startswith('@probe ')]
        ending = f'exit status {done.returncode} {done.stderr.strip()[-300:]}'
        if not lines:
            raise RuntimeError(f'{python} does not run: {ending}')
        head, *new = (json.loads(line.removeprefix('@probe ')) for line in lines)
        records += new
        if len(records) < len(names):
            records.append({'error': 'Python crashed: ' + ending})
    distributions = {normal(name): version for name, version in head['distributions'].items()}
    return Facts(python, tuple(head['python']), distributions, dict(zip(names, records)))
