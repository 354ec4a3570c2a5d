"""Resuming: bit for bit, after a kill, from damaged folders, and never over an earlier run."""
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from small_training import Augmented, Losses, Noisy, quick, small_runner

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.engine import hooks, randomness
from xvit_mm.engine.loops import EpochBasedTrainLoop
from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.config_options import check_no_training, remove_training, use_resume
from xvit_mm.utils.files import FolderError

__all__ = ['quick']  # a fixture
TESTS = Path(__file__).parent


def train(folder, *hooks, **settings):
    """The losses by iteration, and the weights at the end."""
    losses = Losses()
    runner = small_runner(folder, losses, *hooks, **settings)
    runner.train()
    return losses.values, runner.model.state_dict()


def interrupted_train(folder, stop_after, **settings):
    """The same of a training run that is cut off after an iteration, and resumed."""
    losses = Losses(stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        small_runner(folder, losses, **settings).train()
    later, weights = train(folder, resume=True, **settings)
    assert min(later) > 1, 'it started from the beginning'
    return losses.values | later, weights


def assert_same(first, second):
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


# Bit for bit.


@pytest.mark.parametrize('settings, stop_after', [
    (dict(), 18),
    (dict(workers=2), 18),
    (dict(workers=2, persistent=False), 18),
    (dict(by_epoch=False, length=20), 8),
    (dict(by_epoch=False, length=20, workers=2), 8),
    # The loader begins again during the run, and between checkpoint and kill.
    (dict(by_epoch=False, length=20, sampler='DefaultSampler'), 17),
    # Checkpoints in the middle of an epoch, of a loop that counts epochs.
    (dict(checkpoint=dict(by_epoch=False, interval=3)), 18),
    (dict(ema=True), 18),
], ids=['epoch', 'epoch, workers', 'epoch, new workers', 'iteration', 'iteration, workers',
        'iteration, finite', 'within an epoch', 'averaged weights'])
def test_a_resumed_run_equals_an_uninterrupted_one(settings, stop_after, tmp_path):
    whole = train(tmp_path / 'whole', **settings)
    assert len(set(whole[0].values())) == len(whole[0])
    assert_same(whole, interrupted_train(tmp_path / 'cut', stop_after, **settings))


def test_samples_do_not_depend_on_the_number_of_workers(tmp_path):
    assert_same(train(tmp_path / 'a', length=2), train(tmp_path / 'b', length=2, workers=2))


def test_augmentation_differs_between_epochs_samples_and_seeds(tmp_path):
    def noises(seed):
        runner = small_runner(tmp_path, seed=seed)
        loop = runner.build_train_loop(dict(by_epoch=True, max_epochs=2))
        for epoch in range(2):
            loop.data_epoch = epoch
            yield from (batch['inputs'][:, 1:] for batch in loop._begin_epoch())
    values = torch.cat([*noises(0), *noises(1)]).flatten()
    assert len(values) == 4 * 13 * 3 and len(values.unique()) == len(values)


def test_a_drawn_seed_is_resumed_with_its_order_of_samples(tmp_path):
    settings = dict(seed=None, by_epoch=False, length=12)
    losses = Losses()
    runner = small_runner(tmp_path / 'whole', losses, **settings)
    runner.train()
    (tmp_path / 'whole/iter_12.pth').unlink()
    again, _ = train(tmp_path / 'whole', resume=True, **settings)
    assert again == {step: loss for step, loss in losses.values.items() if step > 9}


def test_validation_leaves_no_trace_in_the_training(tmp_path):
    assert_same(train(tmp_path / 'a', length=3),
                train(tmp_path / 'b', length=3, interval=3, checkpoint=dict(interval=1)))


def test_what_a_kill_during_validation_left_out_is_made_up_for(tmp_path):
    class Killed(Losses):
        def before_val_epoch(self, runner):
            if runner.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_runner(tmp_path, Killed()).train()
    assert sorted(p.name for p in tmp_path.glob('best*')) == ['best_acc_epoch_1.pth']
    validated = []

    class Validated(Losses):
        def after_val_epoch(self, runner, metrics=None):
            validated.append(runner.epoch)

    small_runner(tmp_path, Validated(), resume=True).train()
    assert validated == [2, 3, 4]
    small_runner(tmp_path, Validated(), resume=True).train()
    assert validated == [2, 3, 4], 'a validation that was done is not repeated'


def test_random_states_survive_a_checkpoint(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), \
            torch.rand(1).item()
    draw()
    torch.save(randomness.random_state(), tmp_path / 'state.pth')
    first = draw()
    randomness.set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == first


def test_a_seeded_data_set_passes_for_the_one_it_wraps():
    dataset = Augmented()
    wrapped = randomness.SeededDataset(dataset)
    wrapped.pipeline = 'new'
    assert isinstance(wrapped, Augmented) and dataset.pipeline == 'new'
    assert wrapped.metainfo is dataset.metainfo and len(wrapped) == 13
    state = np.random.get_state()[1].copy()
    index = randomness.SeededIndex(3, (0, 1))
    assert torch.equal(wrapped[index]['inputs'], wrapped[index]['inputs'])
    assert (np.random.get_state()[1] == state).all()
    import pickle
    copy = pickle.loads(pickle.dumps((wrapped, index)))
    assert torch.equal(copy[0][copy[1]]['inputs'], wrapped[index]['inputs'])


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_a_start_in_the_data_leaves_out_what_comes_before(sampler):
    def orders(start):
        loader = torch.utils.data.DataLoader(
            list(range(9)), batch_size=2, sampler=sampler(list(range(9)), seed=0))
        batches = randomness.seed_samples(loader, 0)
        batches.start = start
        return [list(map(int, indices)) for _, indices in zip(range(5 - start), batches)]
    assert orders(2) == orders(0)[2:] and len(orders(2)) == 3


# Kills and damage.


def test_no_kill_costs_a_checkpoint_and_each_is_resumed_from():
    done = subprocess.run(
        [sys.executable, TESTS / 'kill_training.py', '--kills', '10'], capture_output=True,
        text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith('0 failures\n')


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.runner.Runner._log_env', lambda *args: None)
        small_runner(folder, length=2).train()
    return folder


@pytest.fixture
def work_dir(finished, tmp_path):
    """A copy of a training run of two epochs, with both checkpoints and the best."""
    import shutil
    return Path(shutil.copytree(finished, tmp_path / 'run'))


def test_the_usual_files_stand_and_no_others(work_dir):
    assert names(work_dir) == ['best_acc_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth']
    assert (work_dir / 'last_checkpoint').read_text() == 'epoch_2.pth'
    assert not list(work_dir.glob('.*'))


def truncate(path, size=1000):
    with open(path, 'r+b') as file:
        file.truncate(size)


DAMAGE = {
    'the last checkpoint is torn': lambda d: truncate(d / 'epoch_2.pth'),
    'the last checkpoint is empty': lambda d: truncate(d / 'epoch_2.pth', 0),
    'the last checkpoint is gone': lambda d: (d / 'epoch_2.pth').unlink(),
    'the last checkpoint holds weights only': lambda d: torch.save(
        Noisy().state_dict(), d / 'epoch_2.pth'),
    'the last checkpoint holds NaN': lambda d: torch.save(
        {**torch.load(d / 'epoch_2.pth', weights_only=False),
         'state_dict': {'net.0.weight': torch.full((8, 4), float('nan'))}}, d / 'epoch_2.pth'),
    'last_checkpoint is empty': lambda d: (d / 'last_checkpoint').write_text(''),
    'last_checkpoint is torn': lambda d: (d / 'last_checkpoint').write_bytes(b'epoch_2.p\0\xff'),
    'last_checkpoint is gone': lambda d: (d / 'last_checkpoint').unlink(),
    'last_checkpoint is absolute and elsewhere': lambda d: (d / 'last_checkpoint').write_text(
        '/where/it/was/epoch_2.pth'),
    'last_checkpoint is behind': lambda d: (d / 'last_checkpoint').write_text('epoch_1.pth'),
    'a file is left half-written': lambda d: (d / '.epoch_3.pth.partial').write_bytes(b'torn'),
    'the folder is renamed': lambda d: None,
}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_damaged_folder_is_resumed_from_the_newest_checkpoint_that_can_be_read(
    name, work_dir, caplog
):
    os.utime(work_dir / 'epoch_1.pth', (1, 1))
    DAMAGE[name](work_dir)
    if name == 'the folder is renamed':
        work_dir = work_dir.rename(work_dir.with_name('renamed'))
    losses = Losses()
    runner = small_runner(work_dir, losses, length=3, resume=True)
    messages = []
    runner.logger.warning = messages.append
    runner.train()
    lost = name.startswith('the last checkpoint')
    assert min(losses.values) == (8 if lost else 15)
    assert names(work_dir) == ['best_acc_epoch_3.pth', 'epoch_2.pth', 'epoch_3.pth']
    assert not list(work_dir.glob('.*'))
    warned = any('epoch_2.pth' in m for m in messages if m.startswith('not resumed from'))
    assert warned == (lost and 'gone' not in name)


def test_where_no_checkpoint_can_be_read_each_is_named_and_nothing_overwritten(work_dir):
    for path in work_dir.glob('*.pth'):
        truncate(path)
    with pytest.raises(CheckpointError, match=r'(?s)none of the 2 .*epoch_2.*epoch_1.*--overwrite'):
        small_runner(work_dir, resume=True).train()
    assert all(path.stat().st_size == 1000 for path in work_dir.glob('*.pth'))
    runner = small_runner(work_dir, length=1, resume=True)
    runner.may_start_over = True
    runner.train()
    assert runner.epoch == 1


def test_a_copied_folder_leaves_the_original_alone(work_dir):
    import shutil
    copy = Path(shutil.copytree(work_dir, work_dir.with_name('copy')))
    before = names(work_dir)
    small_runner(copy, length=3, resume=True).train()
    assert names(work_dir) == before and names(copy)[0] == 'best_acc_epoch_3.pth'


def test_resuming_from_weights_alone_says_what_to_do(work_dir):
    torch.save(Noisy().state_dict(), work_dir / 'weights.pth')
    runner = small_runner(work_dir, resume=True, load_from=str(work_dir / 'weights.pth'))
    with pytest.raises(CheckpointError, match='weights.pth holds weights but no .*load_from'):
        runner.train()


def test_nothing_is_removed_before_its_successor_stands(tmp_path, monkeypatch):
    """Also where only one is kept: a failing disk at any write leaves one of each kind."""
    small_runner(tmp_path, length=1, checkpoint=dict(max_keep_ckpts=1)).train()
    for write in range(3):  # the epoch, the best, the epoch with its metrics
        calls = []

        def fail_at(source, target, calls=calls, write=write):
            if str(target).endswith('.pth'):
                calls.append(target)
                if len(calls) == write + 1:
                    raise OSError(28, 'No space left on device')
            os.rename(source, target)

        monkeypatch.setattr(os, 'replace', fail_at)
        with pytest.raises(FolderError, match='cannot be written: No space left.*make room'):
            small_runner(tmp_path, length=9, resume=True,
                         checkpoint=dict(max_keep_ckpts=1)).train()
        stand = names(tmp_path)
        assert any(name.startswith('epoch') for name in stand)
        assert any(name.startswith('best') for name in stand)
        assert not list(tmp_path.glob('.*.partial'))
    monkeypatch.undo()
    small_runner(tmp_path, length=5, resume=True, checkpoint=dict(max_keep_ckpts=1)).train()
    assert names(tmp_path) == ['best_acc_epoch_5.pth', 'epoch_5.pth']


@pytest.mark.parametrize('by_epoch', [True, False])
def test_weights_of_nan_take_no_checkpoints_place(by_epoch, tmp_path):
    class Diverges(Losses):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == 13:  # shortly before the end of the second epoch
                runner.model.net[0].weight.data[0, 0] = torch.nan

    settings = dict(by_epoch=by_epoch, length=2 if by_epoch else 14, interval=None if by_epoch else 7,
                    checkpoint=dict(max_keep_ckpts=1))
    small_runner(tmp_path, Diverges(), **settings).train()
    kept = 'epoch_1.pth' if by_epoch else 'iter_7.pth'
    assert (tmp_path / 'last_checkpoint').read_text() == kept
    assert [path.name for path in tmp_path.glob('[ei]*_*.pth')] == [kept]
    losses = Losses()
    small_runner(tmp_path, losses, resume=True, **settings).train()
    assert min(losses.values) == 8 and len(list(tmp_path.glob('[ei]*_*.pth'))) == 1


def test_the_best_of_several_metrics_are_kept_and_resumed(tmp_path):
    settings = dict(checkpoint=dict(save_best=['acc', 'loss']))
    small_runner(tmp_path, length=2, **settings).train()
    assert names(tmp_path)[:2] == ['best_acc_epoch_2.pth', 'best_loss_epoch_2.pth']
    moved = tmp_path.rename(tmp_path.with_name('moved'))
    small_runner(moved, length=3, resume=True, **settings).train()
    assert names(moved)[:2] == ['best_acc_epoch_3.pth', 'best_loss_epoch_3.pth']
    assert len(names(moved)) == 4


def test_a_hook_with_a_class_for_its_type_is_replaced_too(tmp_path):
    from mmengine.hooks import CheckpointHook
    runner = small_runner(tmp_path, checkpoint=dict(type=CheckpointHook))
    assert [type(h) for h in runner.hooks if isinstance(h, CheckpointHook)] == [
        hooks.CheckpointHook]


def test_mmengines_own_checkpoints_are_resumed_from(tmp_path):
    """Those of a training run that was begun without this package."""
    runner = small_runner(tmp_path, length=2)
    runner.train()
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    del checkpoint['resuming']
    torch.save(checkpoint, tmp_path / 'epoch_2.pth')
    losses = Losses()
    runner = small_runner(tmp_path, losses, length=3, resume=True)
    runner.train()
    assert min(losses.values) == 15 and isinstance(runner.train_loop, EpochBasedTrainLoop)


# Work folders.


def config(folder, **entries):
    return Config(dict(work_dir=str(folder), **entries))


def test_a_folder_with_checkpoints_is_not_overwritten_unless_told_to(work_dir, capsys):
    with pytest.raises(ConfigError, match='epoch_2.pth, epoch_1.pth.*--resume.*--overwrite'):
        check_no_training(config(work_dir))
    (work_dir / 'last_checkpoint').unlink()
    cfg = config(work_dir)
    use_resume(cfg)
    assert cfg.resume is True and not capsys.readouterr().out
    check_no_training(cfg)
    remove_training(work_dir)
    assert not names(work_dir)
    check_no_training(config(work_dir))
