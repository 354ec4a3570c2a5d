"""The command-line tools as a user calls them: a training, a resume, tests, and mistakes."""
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xvit_mm.datasets.shapes import make_shapes_dataset
from xvit_mm.engine.config import ConfigError, load_config, revert_sync_bn

ROOT = Path(__file__).parent.parent
SMALL = ['model.backbone.arch.embed_dims=32', 'model.backbone.arch.depths="(1,1,1,1)"',
         'model.backbone.arch.num_heads="(1,1,2,2)"', 'model.neck.in_channels=[32,64,128,256]',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
         'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
         'train_cfg.val_interval=1', 'model.test_cfg.score_thr=0.',
         'default_hooks.logger.interval=1']


def start(tool: str, *arguments: str) -> subprocess.Popen:
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return subprocess.Popen([sys.executable, f'tools/{tool}.py', *arguments], cwd=ROOT,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def run(tool: str, *arguments: str) -> tuple[int, str]:
    process = start(tool, *arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes_dataset(root, num_train=16, num_val=4, seed=0)
    return root


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory) -> Path:
    """The work directory of a training of one epoch."""
    work_dir = tmp_path_factory.mktemp('run')
    code, output = run('train', 'retinanet_crossformer_demo.py', '--data-root', str(data),
                       '--work-dir', str(work_dir), '--cfg-options', *SMALL,
                       'train_cfg.max_epochs=1')
    assert code == 0, output[-3000:]
    assert 'coco/bbox_mAP' in output
    return work_dir


def test_training_leaves_a_checkpoint_curves_and_pictures(trained):
    assert (trained / 'last_checkpoint').read_text().endswith('epoch_1.pth')
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
    assert '--resume goes on from the last checkpoint' in output and 'Traceback' not in output
    saved = torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=False)
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
     '--launcher pytorch: mmengine gives every process a GPU'),
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


# The config of a run.


def test_options_reach_the_config_and_misspelt_ones_are_refused():
    name = 'retinanet_crossformer_s_coco.py'
    cfg = load_config(name, {'model.backbone.with_cp': True, 'load_from': 'x.pth'})
    assert cfg.model.backbone.with_cp is True and cfg.load_from == 'x.pth'
    for option in ('model.backbon.arch', 'auto_scale_lr.enabel', 'train_cfg.max_epoch.x',
                   'lod_from'):
        with pytest.raises(ConfigError, match='no entry'):
            load_config(name, {option: 1})


def test_data_root_moves_every_path_of_the_data(tmp_path):
    cfg = load_config('retinanet_crossformer_s_coco.py', data_root=tmp_path)
    text = json.dumps(cfg.to_dict(), default=str)
    assert 'data/coco' not in text
    assert cfg.val_evaluator.ann_file == f'{tmp_path}/annotations/instances_val2017.json'
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/'


def test_sync_bn_is_reverted_wherever_it_stands():
    from mmengine.config import Config
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'), heads=[
        dict(norm_cfg=dict(type='SyncBN', requires_grad=True))])))
    revert_sync_bn(cfg)
    assert 'SyncBN' not in str(cfg) and cfg.model.heads[0].norm_cfg.type == 'BN'


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    with pytest.raises(ConfigError, match='broken.py is not a valid config: SyntaxError'):
        load_config(tmp_path / 'broken.py')
