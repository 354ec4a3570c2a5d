"""The command-line tools as a user calls them: a training run, a resume, tests, and mistakes."""
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from tool_runs import run_tool

from xvit_mm.datasets.shapes import make_shapes_dataset

ROOT = Path(__file__).parent.parent
SMALL = ['model.backbone.arch.embed_dims=32', 'model.backbone.arch.depths="(1,1,1,1)"',
         'model.backbone.arch.num_heads="(1,1,2,2)"', 'model.neck.in_channels=[32,64,128,256]',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
         'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
         'train_cfg.val_interval=1', 'model.test_cfg.score_thr=0.',
         'default_hooks.logger.interval=1']


def start(tool: str, *arguments: str) -> subprocess.Popen:
    """A program of its own, as a user starts it."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return subprocess.Popen([sys.executable, f'tools/{tool}.py', *arguments], cwd=ROOT,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def run(tool: str, *arguments: str) -> tuple[int, str]:
    done = run_tool(tool, *arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes_dataset(root, num_train=16, num_val=4, seed=0)
    return root


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory) -> Path:
    """The work directory of a training run of one epoch."""
    work_dir = tmp_path_factory.mktemp('run')
    process = start('train', 'retinanet_crossformer_demo.py', '--data-root', str(data),
                    '--work-dir', str(work_dir), '--cfg-options', *SMALL,
                    'train_cfg.max_epochs=1')
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert 'coco/bbox_mAP' in output
    return work_dir


def test_training_leaves_a_checkpoint_curves_and_pictures(trained):
    assert (trained / 'last_checkpoint').read_text() == 'epoch_1.pth'
    assert (trained / 'curves.png').stat().st_size > 1000
    assert len(list((trained / 'pictures').glob('*.png'))) == 4


def test_resume_goes_on_with_epoch_2(trained, data):
    code, output = run('train', 'retinanet_crossformer_demo.py', '--data-root', str(data),
                       '--work-dir', str(trained), '--resume', '--cfg-options', *SMALL,
                       'train_cfg.max_epochs=2')
    assert code == 0, output[-3000:]
    assert 'Epoch(train) [2]' in output.replace('  ', ' ')
    assert 'Epoch(train) [1]' not in output.replace('  ', ' ')
    assert 'backbone tensors loaded' in output


def test_testing_writes_predictions_and_pictures(trained, data, tmp_path):
    code, output = run('test', 'retinanet_crossformer_demo.py', str(trained / 'epoch_1.pth'),
                       '--data-root', str(data), '--work-dir', str(tmp_path), '--cfg-options',
                       *SMALL, '--out', str(tmp_path / 'all.pkl'), '--show-dir',
                       str(tmp_path / 'drawn'))
    assert code == 0, output[-3000:]
    with open(tmp_path / 'all.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 4
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 4


def test_a_detector_with_official_names_gives_the_same_ap(trained, data, tmp_path):
    from test_checkpoints import official_name
    own = torch.load(trained / 'epoch_1.pth', weights_only=False)['state_dict']
    backbone = {n: t for n, t in own.items() if n.startswith('backbone.')}
    official = {f'backbone.{official_name(n)}': t for n, t in backbone.items()}
    assert not set(official) & set(backbone)
    others = {n: t for n, t in own.items() if n not in backbone}
    torch.save({'state_dict': official | others, 'meta': {}}, tmp_path / 'official.pth')
    scores = []
    for checkpoint in (trained / 'epoch_1.pth', tmp_path / 'official.pth'):
        code, output = run('test', 'retinanet_crossformer_demo.py', str(checkpoint), '--data-root',
                           str(data), '--work-dir', str(tmp_path), '--cfg-options', *SMALL)
        assert code == 0, output[-3000:]
        assert f'{len(backbone)} of {len(backbone)} backbone tensors loaded' in output
        scores.append(re.findall(r'bbox_mAP_copypaste: .*', output))
    assert len(scores[0]) == 1 and scores[0] == scores[1]


def test_test_time_augmentation_runs(trained, data, tmp_path):
    code, output = run('test', 'retinanet_crossformer_demo.py', str(trained / 'epoch_1.pth'),
                       '--data-root', str(data), '--work-dir', str(tmp_path), '--tta',
                       '--cfg-options', *SMALL)
    assert code == 0, output[-3000:]
    assert 'coco/bbox_mAP' in output


def test_kill_loses_no_finished_epoch_and_prints_no_traceback(data, tmp_path):
    # More epochs than the test waits for, so that the signal finds it training.
    process = start('train', 'retinanet_crossformer_demo.py', '--data-root', str(data),
                    '--work-dir', str(tmp_path), '--cfg-options', *SMALL,
                    'train_cfg.max_epochs=10000')
    deadline = time.time() + 200
    while not (tmp_path / 'last_checkpoint').exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output[-3000:]
    assert '--resume continues from the last checkpoint' in output and 'Traceback' not in output
    last = (tmp_path / 'last_checkpoint').read_text()
    saved = torch.load(tmp_path / last, weights_only=False)
    assert saved['meta']['epoch'] >= 1


# Mistakes: one message with the remedy, exit code 1, no traceback.


@pytest.mark.parametrize('tool, arguments, message', [
    ('train', ['configs/no_such.py'], "config 'configs/no_such.py' does not exist"),
    ('train', ['retinanet_crossformer_m_coco.py'], 'closest: .*retinanet_crossformer'),
    ('train', ['configs/retinanet_crossformer_s_coco.py', '--data-root', 'no/where'],
     "--data-root 'no/where' is not a folder"),
    ('train', ['configs/retinanet_crossformer_s_coco.py', '--data-root', 'tests'],
     "tests/annotations/instances_train2017.json' does not exist. Name the folder"),
    ('train', ['configs/retinanet_crossformer_s_coco.py', '--cfg-options', 'optim_wraper.lr=1'],
     "no entry 'optim_wraper' at the top level of the config; did you mean optim_wrapper"),
    ('test', ['configs/retinanet_crossformer_s_coco.py', 'no.pth', '--data-root', '{data}'],
     "checkpoint 'no.pth' does not exist"),
    ('train', ['retinanet_crossformer_demo.py', '--data-root', '{data}', '--cfg-options',
               'model.backbone.depth=50'], "CrossFormer has no argument 'depth'"),
    ('train', ['retinanet_crossformer_demo.py', '--data-root', '{data}', '--amp'],
     '--amp needs a GPU'),
    ('train', ['retinanet_crossformer_demo.py', '--data-root', '{data}', '--launcher', 'pytorch'],
     '--launcher pytorch: this process was not started by torchrun'),
    ('train', ['retinanet_crossformer_demo.py', '--data-root', '{data}', '--launcher', 'slurm'],
     '--launcher slurm: mmengine gives every process a GPU'),
])
def test_mistakes_get_one_clear_message(tool, arguments, message, data, tmp_path):
    arguments = [a.replace('{data}', str(data)) for a in arguments]
    code, output = run(tool, *arguments, '--work-dir', str(tmp_path))
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'Traceback' not in output
    assert re.search(message.replace('(', r'\('), errors[0])


def test_a_checkpoint_of_another_variant_is_refused(data, tmp_path):
    from xvit_mm.models.backbones import CrossFormer
    torch.save({'model': CrossFormer('t').state_dict()}, tmp_path / 't.pth')
    code, output = run('train', 'retinanet_crossformer_demo.py', '--data-root', str(data),
                       '--work-dir', str(tmp_path), '--pretrained', str(tmp_path / 't.pth'))
    assert code == 1 and 'Traceback' not in output
    assert "error: this is a checkpoint of CrossFormer 't', but the backbone is" in output


# The config that a tool builds its runner from.


def built_by(tool: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    """The config from which a tool would build its runner."""
    build = Mock()
    monkeypatch.setattr('xvit_mm.apis.build_runner', build)
    monkeypatch.setattr('signal.signal', lambda *args: None)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    return build.call_args.args[0]


def test_the_config_of_a_resumed_training_can_be_tested(monkeypatch, data, tmp_path):
    cfg = built_by('test', monkeypatch, 'retinanet_crossformer_demo.py', 'x.pth', '--data-root',
                   str(data), '--work-dir', str(tmp_path), '--cfg-options', 'resume=True')
    assert cfg.resume is False and cfg.load_from == 'x.pth'


def test_resume_without_a_checkpoint_says_so_and_keeps_load_from(
    monkeypatch, capsys, data, tmp_path
):
    arguments = ('retinanet_crossformer_demo.py', '--data-root', str(data), '--work-dir',
                 str(tmp_path), '--cfg-options', 'load_from=x.pth', 'resume=True', '--resume')
    cfg = built_by('train', monkeypatch, *arguments)
    assert cfg.resume is False and cfg.load_from == 'x.pth'
    says = f'{tmp_path} has no checkpoint to resume from: training starts from the beginning\n'
    assert says in capsys.readouterr().out
    (tmp_path / 'epoch_1.pth').touch()
    cfg = built_by('train', monkeypatch, *arguments)
    assert cfg.resume is True and cfg.load_from is None
    assert 'no checkpoint' not in capsys.readouterr().out
