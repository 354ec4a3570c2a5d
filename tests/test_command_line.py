"""Options, configs and errors on the way from a command line to a run."""
import io
import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from mmengine.config import Config

from xvit_mm.apis import command_line as tool_module
from xvit_mm.utils.config import ConfigError, check_data, load_config
from xvit_mm.utils.config_options import revert_sync_bn, use_tta

ROOT = Path(__file__).parent.parent


# The config of a run.


def test_options_reach_the_config_and_misspelt_ones_are_refused():
    name = 'retinanet_crossformer_s_coco.py'
    cfg = load_config(name, {'model.backbone.with_cp': True, 'load_from': 'x.pth'})
    assert cfg.model.backbone.with_cp is True and cfg.load_from == 'x.pth'
    for option in ('model.backbon.arch', 'auto_scale_lr.enabel', 'train_cfg.max_epoch.x',
                   'lod_from', 'train_cfg.max_epoch', 'default_hooks.checkpont.interval',
                   'train_dataloader.dataest.type', 'train_dataloader.dataset.pipeline.99.type',
                   'metainfo.x.y', 'randomnes.seed'):
        with pytest.raises(ConfigError, match='no entry'):
            load_config(name, {option: 1})


@pytest.mark.parametrize('options', [
    {'randomness.deterministic': True},
    {'train_dataloader.prefetch_factor': 4, 'val_dataloader.pin_memory': False},
    {'train_dataloader.collate_fn.type': 'pseudo_collate'},
    {'model_wrapper_cfg.type': 'MMDistributedDataParallel'},
    {'optim_wrapper.clip_grad.max_norm': 35},
    {'default_hooks.ema.type': 'EMAHook', 'default_hooks.ema.momentum': 0.1},
    {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': 'x.pth'},
])
def test_options_may_add_what_the_framework_documents(options):
    cfg = load_config('retinanet_crossformer_s_coco.py', options)
    for name, value in options.items():
        for key in name.split('.')[:-1]:
            cfg = cfg[key]
        assert cfg[name.rpartition('.')[2]] == value
        cfg = load_config('retinanet_crossformer_s_coco.py', options)


def hooks_of(**settings) -> list[tuple[str, dict]]:
    """Name and settings of each hook that the runner would build."""
    from xvit_mm.engine import Runner
    runner = Mock(spec=Runner)
    built = []
    with patch('mmengine.runner.Runner.register_hooks', lambda self, default, custom: built.extend(
            [*default.items(), *(('custom', hook) for hook in custom or ())])):
        Runner.register_hooks(runner, settings.get('default_hooks'), settings.get('custom_hooks'))
    return [(name, hook['type'].split('.')[-1] if hook else None) for name, hook in built]


def test_every_hook_has_a_name_by_which_it_is_switched():
    cfg = load_config('retinanet_crossformer_s_coco.py', {
        'default_hooks.channels_last.enabled': True, 'default_hooks.curves': None})
    assert cfg.default_hooks.channels_last.enabled is True
    built = hooks_of(**cfg)
    assert ('pictures', 'PicturesHook') in built and 'CurvesHook' not in dict(built).values()


def test_a_config_with_our_hooks_in_custom_hooks_gets_each_once():
    cfg = load_config('retinanet_crossformer_s_coco.py')
    cfg.custom_hooks = [dict(type=f'xvit_mm.{hook}Hook') for hook in ('ProgressBar', 'Pictures')]
    built = hooks_of(**cfg)
    assert ('custom', 'PicturesHook') in built and ('pictures', 'PicturesHook') not in built
    assert len({kind for _, kind in built}) == len(built)
    cfg.custom_hooks = [dict(type='xvit_mm.FiniteLossHook', patience=99)]
    assert [kind for _, kind in hooks_of(**cfg)].count('FiniteLossHook') == 1
    with pytest.raises(ConfigError, match='no custom_hooks; its hooks are .*default_hooks.curves'):
        load_config('retinanet_crossformer_s_coco.py', {'custom_hooks.0.type': 'EMAHook'})


@pytest.mark.parametrize('config, hook', [
    ('retinanet_crossformer_s_coco.py', 'DetVisualizationHook'),
    ('fpn_crossformer_s_ade20k.py', 'SegVisualizationHook'),
    ('crossformer_s_imagenet.py', 'VisualizationHook'),
])
def test_the_hook_that_stock_tools_ask_for_is_there(config, hook):
    cfg = load_config(config)
    assert cfg.default_hooks.visualization.type == hook
    assert ('visualization', hook) not in hooks_of(**cfg)
    cfg.default_hooks.visualization['enable' if 'imagenet' in config else 'draw'] = True
    assert ('visualization', hook) in hooks_of(**cfg)


@pytest.mark.parametrize('option', [
    'a=[dict(b=1)]', 'a=[{b: 1, c: 2}]', 'a=dict(b=1)', 'a', 'a=[(1]'
])
def test_an_option_that_cannot_be_read_gets_a_line(option, capsys):
    with pytest.raises(SystemExit):
        tool_module.config_arguments('').parse_args(['x.py', '--cfg-options', option])
    message = capsys.readouterr().err.splitlines()[-1]
    assert f'--cfg-options {option}: give NAME=VALUE' in message


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is logged, whatever streams the logger of another test still holds."""
    messages = []
    for module in ('xvit_mm.apis.build', 'xvit_mm.utils.config_options'):
        monkeypatch.setattr(f'{module}.print_log', lambda message, *args: messages.append(message))
    return messages


def test_what_is_done_to_a_config_is_said(said):
    from xvit_mm.apis import build_runner
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    revert_sync_bn(cfg)
    with pytest.raises(ConfigError):
        build_runner(cfg)
    assert 'SyncBN becomes BN in 1 places' in said[0] and 'gets xvit_mm.Runner' in said[1]


def test_another_runner_is_said_and_a_strategy_without_a_gpu_refused(said, monkeypatch):
    from xvit_mm.apis import build_runner
    monkeypatch.setattr('xvit_mm.apis.build.get_device', lambda: 'cpu')
    with pytest.raises(ConfigError, match="strategy 'FSDPStrategy' needs a GPU"):
        build_runner(Config(dict(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy'))))
    assert 'asks for FlexibleRunner: checkpoints are read' in said[0]


def test_randomness_can_be_set_in_a_config_without_it(tmp_path):
    (tmp_path / 'bare.py').write_text('model = dict(type="A")\n')
    assert load_config(tmp_path / 'bare.py', {'randomness.seed': 3}).randomness.seed == 3


def test_data_root_moves_every_path_of_the_data(tmp_path):
    cfg = load_config('retinanet_crossformer_s_coco.py', data_root=tmp_path)
    text = json.dumps(cfg.to_dict(), default=str)
    assert 'data/coco' not in text
    assert cfg.val_evaluator.ann_file == f'{tmp_path}/annotations/instances_val2017.json'
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/'


def test_data_root_moves_whole_folders_in_dicts_and_lists(tmp_path):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'cfg.py').write_text(
        "data_root = 'data/coco'\nkept = 'data/coco_x/a.json'\n"
        "train_dataloader = dict(dataset=dict(data_root=data_root))\n"
        "val_evaluator = [dict(files=['data/coco/a.json', 'data/coco/b.json'])]\n")
    cfg = load_config(tmp_path / 'cfg.py', data_root=tmp_path / 'new')
    assert cfg.kept == 'data/coco_x/a.json'
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/new/'
    assert cfg.val_evaluator[0]['files'] == [f'{tmp_path}/new/a.json', f'{tmp_path}/new/b.json']


@pytest.mark.parametrize('root, message', [
    ('', "no data_root that could be replaced, but ''"),
    ('/other/', "data_root, '/other/', but the data_root of its data sets is 'data/coco/'"),
])
def test_a_data_root_that_the_data_sets_do_not_have_is_refused(tmp_path, root, message):
    base = ROOT / 'configs' / 'retinanet_crossformer_s_coco.py'
    (tmp_path / 'child.py').write_text(f"_base_ = '{base}'\ndata_root = '{root}'\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / 'child.py', data_root=tmp_path)


def joined_config(tmp_path: Path) -> Config:
    """The test set consists of two; the folder of the second is missing."""
    (tmp_path / 'a').mkdir()
    sets = [dict(data_root=str(tmp_path / name), pipeline=[]) for name in 'ab']
    loader = dict(dataset=dict(type='ConcatDataset', datasets=sets))
    return Config(dict(test_dataloader=loader, tta_model=dict(type='TTA'), model=dict(),
                       tta_pipeline=[dict(type='TestTimeAug')]))


def test_every_data_set_that_a_loader_joins_is_looked_for_and_augmented(tmp_path):
    cfg = joined_config(tmp_path)
    with pytest.raises(ConfigError, match="test_dataloader: '.*/b' does not exist"):
        check_data(cfg, 'test_dataloader')
    use_tta(cfg)
    for dataset in cfg.test_dataloader.dataset.datasets:
        assert dataset.pipeline == cfg.tta_pipeline

# How a run ends.


def failing(error: BaseException) -> None:
    print('so far', end='')
    raise error


def test_the_error_of_every_process_is_printed(monkeypatch, capsys):
    monkeypatch.setattr('signal.signal', lambda *args: None)
    monkeypatch.setattr(tool_module, 'get_rank', lambda: 2)
    with pytest.raises(SystemExit, match='1'):
        tool_module.run_tool(lambda: failing(ConfigError('no such file')))
    assert capsys.readouterr().err == 'rank 2: error: no such file\n'


def test_an_interruption_loses_no_output(monkeypatch):
    monkeypatch.setattr('signal.signal', lambda *args: None)
    file = io.BytesIO()
    written = []
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(file))
    monkeypatch.setattr(os, '_exit', lambda code: written.append((code, file.getvalue())))
    tool_module.run_tool(lambda: failing(KeyboardInterrupt()))
    assert written == [(130, b'so far')]


@pytest.fixture
def signals():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_mmengine_formats_a_config_is_not_swallowed(
    number, signals, monkeypatch, capsys
):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # imported late, or early
        monkeypatch.setattr(f'{place}.FormatCode', lambda *args, **kwargs: os.kill(
            os.getpid(), number), raising=False)
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit, match='130'):
        tool_module.run_tool(lambda: Config(dict(a=1)).pretty_text, resumable=True)
    assert capsys.readouterr().err == (
        '\ninterrupted; the same command with --resume continues from the last checkpoint\n')


def test_a_full_disk_gets_a_line_wherever_it_is_met(signals, capsys):
    with pytest.raises(SystemExit, match='1'):
        tool_module.run_tool(lambda: failing(OSError(28, 'No space left on device', 'a.json')))
    assert 'error: a.json: No space left on device. Checkpoints' in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(signals):
    with pytest.raises(OSError, match='odd'):
        tool_module.run_tool(lambda: failing(OSError(5, 'odd')))


def test_sync_bn_is_reverted_wherever_it_stands():
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'), heads=[
        dict(norm_cfg=dict(type='SyncBN', requires_grad=True))])))
    revert_sync_bn(cfg)
    assert 'SyncBN' not in str(cfg) and cfg.model.heads[0].norm_cfg.type == 'BN'


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    with pytest.raises(ConfigError, match='broken.py is not a valid config: SyntaxError'):
        load_config(tmp_path / 'broken.py')
