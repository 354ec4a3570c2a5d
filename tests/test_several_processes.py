"""Training and testing in two processes through the tools, as one process with the same batches."""
import json
import os
import pickle
import runpy
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from small_training import Losses, small_runner

from xvit_mm.datasets.own_data import use_own_data
from xvit_mm.datasets.shapes import make_shapes_dataset
from xvit_mm.engine import Runner
from xvit_mm.utils.config import load_config

pytestmark = pytest.mark.training
ROOT = Path(__file__).parent.parent
NUM_TRAIN, NUM_VAL = 4, 5  # an odd number: one process gets an image less
BACKBONE = dict(
    type='xvit_mm.CrossFormer', drop_path_rate=0., with_cp=True, frozen_stages=1,
    arch=dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)))


def detector(root: Path) -> Config:
    """On one image several times: mmdet's RetinaNet divides by the boxes of its process."""
    make_shapes_dataset(root, num_train=1, num_val=NUM_VAL, seed=0)
    file = root / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    image, boxes = content['images'][0], list(content['annotations'])
    for number in range(1, NUM_TRAIN):
        content['images'].append(dict(image, id=1000 + number))
        content['annotations'] += [dict(box, id=1000 * number + box['id'], image_id=1000 + number)
                                   for box in boxes]
    file.write_text(json.dumps(content))
    cfg = load_config('retinanet_crossformer_demo.py', data_root=root)
    cfg.model.backbone = BACKBONE
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32)
    cfg.model.test_cfg.score_thr = 0.
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [t for t in pipeline if t['type'] != 'RandomFlip']
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    return cfg


def segmentor(root: Path) -> Config:
    for split, count in (('train', NUM_TRAIN), ('val', NUM_VAL)):
        for number in range(count):
            save_image(root / f'images/{split}/{number}.jpg', number)
            labels = np.random.default_rng(number).integers(0, 3, (8, 8), np.uint8)
            save_image(root / f'labels/{split}/{number}.png', labels.repeat(8, 0).repeat(8, 1))
    cfg = load_config('fpn_crossformer_s_ade20k.py')
    use_own_data(cfg, root, classes=['a', 'b', 'c'])
    cfg.model.backbone = BACKBONE
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    cfg.model.decode_head.update(
        in_channels=[32] * 4, channels=16, dropout_ratio=0., norm_cfg=dict(type='GN', num_groups=4))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')]
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    return cfg


def classifier(root: Path) -> Config:
    for split, count in (('train', NUM_TRAIN), ('val', NUM_VAL)):
        for number in range(count):
            save_image(root / split / 'ab'[number % 2] / f'{number}.jpg', number)
    cfg = load_config('crossformer_s_imagenet.py')
    use_own_data(cfg, root)
    cfg.model.backbone = dict(BACKBONE, out_indices=(3, ))
    cfg.model.head.in_channels = 256
    cfg.model.train_cfg = None  # no mixup
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    return cfg


def save_image(path: Path, content: int | np.ndarray) -> None:
    """A label map, or an image that depends on a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        content = np.random.default_rng(content).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(content).save(path)


def write_config(cfg: Config, path: Path) -> Path:
    """The config without anything random, and with a hook that writes the losses."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = NUM_TRAIN
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    cfg.param_scheduler = []
    cfg.custom_imports = dict(imports=['mean_losses'])
    cfg.default_hooks.losses = dict(type='MeanLosses')
    cfg.dump(path)
    return path


def in_one_process(tool: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('signal.signal', lambda *args: None)
        patch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def in_two_processes(tool: str, config: Path, *arguments: str) -> str:
    """Through the shell script; returns the output."""
    # The number of processes is the last of the script's own arguments.
    own, others = (1, arguments[1:]) if tool == 'test' else (0, arguments)
    paths = os.pathsep.join([str(ROOT / 'tests'), *sys.path])
    done = subprocess.run(
        [ROOT / f'tools/dist_{tool}.sh', config, *arguments[:own], '2', *others],
        env=dict(os.environ, PYTHON=sys.executable, PYTHONPATH=paths, PORT=str(free_port()),
                 OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def metrics(work_dir: Path) -> list[dict]:
    lines = map(json.loads, next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines())
    return [{name: value for name, value in line.items() if 'time' not in name}
            for line in lines if 'lr' not in line]


@pytest.fixture(scope='module', params=[detector, segmentor, classifier])
def trained(request, tmp_path_factory):
    """Config, and the work folders of a training run in one process and of one in two."""
    root = tmp_path_factory.mktemp(request.param.__name__)
    config = write_config(request.param(root / 'data'), root / 'config.py')
    in_one_process('train', config, '--work-dir', root / 'one')
    in_two_processes('train', config, '--work-dir', root / 'two', '--cfg-options',
                     f'train_dataloader.batch_size={NUM_TRAIN // 2}')
    return config, root / 'one', root / 'two'


def test_two_processes_train_as_one_with_the_same_batches(trained):
    _, one, two = trained
    losses = [json.loads((folder / 'losses.json').read_text()) for folder in (one, two)]
    assert len(losses[0]) == 2 and losses[0][0] != losses[0][1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    first, second = (torch.load(folder / (folder / 'last_checkpoint').read_text(),
                                weights_only=False)['state_dict'] for folder in (one, two))
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_evaluation_in_two_processes_gives_the_same(trained):
    _, one, two = trained
    expected, found = metrics(one)[-1], metrics(two)[-1]
    assert len(found) > 1 and found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('trained', [detector], indirect=True, scope='module')
def test_every_image_is_evaluated_once(trained, tmp_path):
    config, _, two = trained
    checkpoint = two / (two / 'last_checkpoint').read_text()
    in_two_processes('test', config, checkpoint, '--work-dir', tmp_path, '--out',
                     tmp_path / 'all.pkl')
    predictions = pickle.loads((tmp_path / 'all.pkl').read_bytes())
    images = [prediction['img_path'] for prediction in predictions]
    assert len(images) == NUM_VAL == len(set(images))


def train_cut_and_resume(rank: int, root: str, port: int) -> None:
    """A training run in one go, and one that is cut off and resumed, as one of two processes."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    Runner._log_env = lambda *args: None
    weights = []
    for name, stop_after, resume in (('whole', None, False), ('cut', 9, False), ('cut', 0, True)):
        losses = Losses(stop_after=stop_after)
        runner = small_runner(f'{root}/{name}', losses, launcher='pytorch', resume=resume)
        with suppress(KeyboardInterrupt):
            runner.train()
        weights.append(runner.model.module.state_dict())
    assert min(losses.values) == 9, 'resumed after two epochs of four iterations'
    torch.save([weights[0], weights[2]], f'{root}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_a_run_in_two_processes_is_resumed_bit_for_bit(tmp_path):
    torch.multiprocessing.start_processes(
        train_cut_and_resume, (str(tmp_path), free_port()), nprocs=2, start_method='spawn')
    states = [state for rank in (0, 1)
              for state in torch.load(tmp_path / f'{rank}.pth', weights_only=True)]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


@pytest.mark.parametrize('tool, own, passed', [
    ('train', ['WORK_DIR'], ['CONFIG', '--work-dir=WORK_DIR']),
    ('test', ['CHECKPOINT'], ['CONFIG', 'CHECKPOINT']),
])
def test_slurm_scripts_take_the_usual_variables(tool, own, passed, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nfor a; do echo "$a"; done\n')
    srun.chmod(0o755)
    environment = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4',
                       GPUS_PER_NODE='2', CPUS_PER_TASK='3', SRUN_ARGS='--quiet -w node1')
    script = ROOT / f'tools/slurm_{tool}.sh'
    said = subprocess.run([script, 'PART', 'JOB', 'CONFIG', *own, '--cfg-options', 'a=b c'],
                          env=environment, capture_output=True, text=True).stdout.splitlines()
    assert said[:2] == ['-p', 'PART']
    assert {'--job-name=JOB', '--gres=gpu:2', '--ntasks=4', '--ntasks-per-node=2',
            '--cpus-per-task=3', '--quiet', '-w', 'node1'} <= set(said)
    start = next(i for i, word in enumerate(said) if word.endswith(f'{tool}.py'))
    assert said[start + 1:] == [*passed, '--launcher=slurm', '--cfg-options', 'a=b c']


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_without_arguments_say_how_they_are_used(name):
    done = subprocess.run([ROOT / f'tools/{name}.sh'], capture_output=True, text=True)
    assert done.returncode == 2 and f'tools/{name}.sh' in done.stderr


ABORTING = '''
import atexit, ctypes, os
import torch.distributed as dist
from xvit_mm.apis.command_line import run_tool

@ctypes.CFUNCTYPE(None)
def abort():
    os.abort()

def main():
    dist.init_process_group('gloo', 'file://{file}', rank=0, world_size=1)
    atexit.register(print, 'written at exit')
    ctypes.pythonapi.Py_AtExit(abort)

run_tool(main)
'''


def test_a_complete_run_ends_well_although_threads_of_torch_abort_its_exit(tmp_path):
    program = ABORTING.format(file=tmp_path / 'group')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'written at exit\n'), done.stderr
