"""The train.py and test.py of mmdet, mmseg and mmpretrain, as installed, with our configs."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_several_processes import classifier, detector, segmentor, write_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def run(package: str, tool: str, *arguments: str | Path) -> str:
    script = Path(importlib.util.find_spec(package).origin).parent / '.mim/tools' / f'{tool}.py'
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    done = subprocess.run(
        [sys.executable, script, *arguments], env=dict(os.environ, PYTHONPATH=paths),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.parametrize('package, make', [
    ('mmdet', detector), ('mmseg', segmentor), ('mmpretrain', classifier)])
def test_stock_tools_train_resume_test_and_draw(package, make, tmp_path):
    config = write_config(make(tmp_path / 'data'), tmp_path / 'config.py')
    work_dir = tmp_path / 'run'
    run(package, 'train', config, '--work-dir', work_dir)
    assert 'resumed epoch' in run(package, 'train', config, '--work-dir', work_dir, '--resume')
    checkpoint = work_dir / (work_dir / 'last_checkpoint').read_text()
    # Every sample: mmdet and mmseg draw each fiftieth otherwise.
    options = ['--interval', '1'] if package == 'mmpretrain' else [
        '--cfg-options', 'default_hooks.visualization.interval=1']
    run(package, 'test', config, checkpoint, '--work-dir', tmp_path / 'test', '--show-dir',
        tmp_path / 'drawn', *options)
    drawn = [p for p in tmp_path.rglob('*') if p.suffix in ('.png', '.jpg')
             and 'drawn' in str(p.relative_to(tmp_path))]
    assert drawn
