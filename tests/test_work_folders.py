"""Work folders and files: refused in time, written whole, read in the right order."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_training import quick, small_runner

from xvit_mm.utils.files import FolderError, check_room, check_writable, replaced_whole, write_text
from xvit_mm.utils.training_files import checkpoints_in

__all__ = ['quick']  # a fixture
TESTS = Path(__file__).parent


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.mark.parametrize('place, reason', [
    ('file', "file' is a file"), ('file/below', "file' is a file"), ('/proc/none', 'No such file'),
])
def test_unusable_folders_are_refused_with_the_reason(place, reason, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(FolderError, match=f'--work-dir .*cannot be used.*{reason}.*Choose'):
        check_writable(tmp_path / place, '--work-dir')


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), dict(free=100)))
    with pytest.raises(FolderError, match='one checkpoint of this model needs about'):
        small_runner(tmp_path).train()
    check_room(tmp_path, 100)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / 'a', 'old')
    with pytest.raises(RuntimeError), replaced_whole(tmp_path / 'a') as partial:
        partial.write_text('half')
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ['a']
    assert (tmp_path / 'a').read_text() == 'old'


def test_the_newer_of_two_trainings_in_a_folder_comes_first(tmp_path):
    for age, name in enumerate(['epoch_12.pth', 'epoch_2.pth', 'epoch_1.pth', 'iter_9.pth']):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    found = [path.name for path in checkpoints_in(tmp_path)]
    assert found == ['epoch_12.pth', 'iter_9.pth', 'epoch_2.pth', 'epoch_1.pth']
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    # Of the others only iter_9 is newer.
    assert [path.name for path in checkpoints_in(tmp_path)][:2] == ['iter_9.pth', 'epoch_1.pth']


@pytest.mark.training
@pytest.mark.skipif(sys.platform == 'win32', reason='no limits of file sizes')
def test_a_disk_that_takes_no_more_ends_a_training_with_a_line_that_can_be_resumed(tmp_path):
    code = (
        'import resource, sys; from small_training import quick, small_runner; '
        'from xvit_mm.apis.command_line import run_tool; '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); '
        'run_tool(lambda: small_runner(sys.argv[1], width=int(sys.argv[2]), resume=True).train())')
    small_runner(tmp_path, length=1, width=10_000).train()
    done = subprocess.run(
        [sys.executable, '-c', code, tmp_path, '10_000'], capture_output=True, text=True, cwd=TESTS,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    errors = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert len(errors) == 1 and 'epoch_2.pth cannot be written: File too large' in errors[0]
    assert names(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    small_runner(tmp_path, length=2, width=10_000, resume=True).train()
    assert names(tmp_path)[0] == 'best_acc_epoch_2.pth'
