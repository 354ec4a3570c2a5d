"""What is known of an interpreter: gathered by probe.py in a child process."""
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bootstrap import stacks


class Facts(NamedTuple):
    """What the probe of one interpreter gave; `modules` holds the record of each import."""

    python: str
    version: tuple[int, ...]
    distributions: dict[str, str]
    modules: dict[str, dict[str, Any]]

    def detail(self, module: str, name: str) -> Any:
        """Return one fact of a module, None if it did not import."""
        return self.modules.get(module, {}).get(name)

    @property
    def family(self) -> str:
        """Key of the family that is installed, 'both' or 'none'."""
        present = stacks.families(self.distributions)
        return 'both' if len(present) == 2 else next(iter(present), 'none')

    @property
    def stack(self) -> stacks.Stack | None:
        """The tested stack of this family and version of mmcv, else the family's first."""
        same = [one for one in stacks.STACKS.values() if one.family == self.family]
        here = [one for one in same if one.pins[one.mmcv] == self.distributions.get(one.mmcv)]
        return next(iter(here + same), None)

    @property
    def project_stack(self) -> stacks.Stack | None:
        """The stack whose environment, made by environment.py, this is."""
        folder = Path(self.python).absolute().parent
        return next((one for one in stacks.STACKS.values() if one.python.parent == folder), None)


def gather(python: str, names: Sequence[str], env: dict[str, str] | None = None) -> Facts:
    """Probe an interpreter; a module that kills the child is noted, the rest still probed.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    probe = str(Path(__file__).with_name('probe.py'))
    head, records = None, []
    while head is None or len(records) < len(names):
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
    distributions = {stacks.normal(name): one for name, one in head['distributions'].items()}
    return Facts(python, tuple(head['python']), distributions, dict(zip(names, records)))
