"""Every config that ships: its data, its model, an iteration of training, a validation, a test."""
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from toy_data import NUM_IMAGES, accept_toy_cifar10, make_toy_data
from torch import nn

from xvit_mm.apis import build_model, build_runner
from xvit_mm.datasets.checking import check_datasets, datasets_of
from xvit_mm.engine.runner import Runner
from xvit_mm.utils.config import check_data, load_config
from xvit_mm.utils.config_options import revert_sync_bn, use_tta
from xvit_mm.utils.shipped_configs import list_configs

CONFIGS = list_configs(Path(__file__).parent.parent / 'configs')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

# Parameters that need not get a gradient: class of the backbone, pattern of the names, reason.
WITHOUT_GRADIENT = [
    ('MobileNetV2', r'backbone\.conv2\.', 'mmdet builds its last layer whatever out_indices says'),
]


@pytest.fixture(scope='module')
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function from a config to a folder with toy data for it; equal data are written once."""
    folders: dict[str, Path] = {}

    def folder_for(path: Path) -> Path:
        key = repr(list(datasets_of(load_config(path))))
        if key not in folders:
            folder = tmp_path_factory.mktemp('data')
            make_toy_data(load_config(path, data_root=folder), folder)
            folders[key] = folder
        return folders[key]

    return folder_for


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_config_trains_validates_and_augments(
    path: Path,
    toy_folder: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept_toy_cifar10(monkeypatch)
    # mmengine formats the config four times for each runner, which takes as long as the training.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, True))
    # mmengine collects garbage for each data set, a second each time, and the curves of all configs
    # are drawn alike.
    monkeypatch.setattr('gc.collect', lambda *args: 0)
    monkeypatch.setattr('xvit_mm.engine.hooks.curves.draw_curves', lambda *args, **kwargs: None)
    # Everything about checkpoints is done but the writing of the files.
    monkeypatch.setattr(Runner, 'save_checkpoint', lambda *args, **kwargs: None)
    data = toy_folder(path)
    list(check_datasets(load_config(path, data_root=data), tmp_path, num_samples=0))

    runner = build_runner(small_config(path, data, tmp_path))
    assert_channels_fit(runner.model)
    record = Record(runner.model)
    runner.register_hook(record)
    runner.train()
    assert_every_parameter_learns(runner.model, record.gradients)
    assert_finite(record.metrics)

    cfg = small_config(path, data, tmp_path)
    if cfg.get('tta_pipeline'):
        use_tta(cfg)
        assert_finite(build_runner(cfg).test())


# The same config at a smaller size.


def small_config(path: Path, data_root: Path, work_dir: Path) -> Config:
    """The config with small images, batches of two, one process; all else is as it ships."""
    cfg = load_config(path, data_root=data_root)
    check_data(cfg, *LOADERS)
    revert_sync_bn(cfg)
    reduce_sizes(cfg)
    # An untrained detector is sure of nothing, and without detections no metric is computed.
    for part in settings_with('score_thr', cfg.model.get('test_cfg')):
        part.score_thr = 0.
    for loader in LOADERS:
        batch_size = min(cfg[loader].batch_size, NUM_IMAGES)
        cfg[loader].update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    cfg.train_cfg.val_interval = 1
    cfg.work_dir = str(work_dir)
    return cfg


def settings_with(key: str, node: Any) -> Iterator[dict]:
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield from [node] if key in node else []
        children = node.values()
    for child in children:
        yield from settings_with(key, child)


SIZES = {'crop_size', 'img_scale', 'scale', 'scales', 'size', 'stride'}
SMALL = 64  # pixels, what the smallest larger size of the training becomes


def reduce_sizes(cfg: Config) -> None:
    """Divide every size in the pipelines and in the model's handling of images by one number."""
    parts = [cfg[loader].dataset for loader in LOADERS]
    parts += [cfg.get('tta_pipeline'), cfg.get('data_preprocessor')]
    parts += [cfg.model.get('data_preprocessor'), cfg.model.get('test_cfg')]
    trained = [size for node, key in sizes_in(parts[0]) for size in integers(node[key])]
    divisor = min((size for size in trained if size > SMALL), default=SMALL) / SMALL
    for node, key in sizes_in(parts):
        node[key] = divided(node[key], divisor)


def sizes_in(node: Any) -> list[tuple[dict, str]]:
    return [(owner, key) for key in SIZES for owner in settings_with(key, node)]


def integers(value: Any) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in integers(item)]
    return [value] if isinstance(value, int) else []


def divided(value: Any, divisor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(divided(item, divisor) for item in value)
    return round(value / divisor) if isinstance(value, int) and value > SMALL else value


# What is asserted.


class Record(Hook):
    """Ends the training after an iteration and notes its gradients and what validation measures."""

    def __init__(self, model: nn.Module) -> None:
        self.gradients: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        # To be removed: Python does not free a parameter and a hook that refer to one another.
        self.handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, name))
            for name, parameter in model.named_parameters() if parameter.requires_grad]

    def _note(self, name: str, parameter: nn.Parameter) -> None:
        self.gradients[name] = float(parameter.grad.abs().sum())

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        for handle in self.handles:
            handle.remove()
        # Shorter schedules would not do: some have a warm-up of 20 epochs.
        runner.train_loop.stop_training = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


def assert_every_parameter_learns(model: nn.Module, gradients: dict[str, float]) -> None:
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert expected - excepted(model, expected) == gradients.keys()
    assert all(map(math.isfinite, gradients.values()))
    # A part whose gradients are all zero is not part of the loss.
    parts = {name.split('.')[0] for name in expected}
    assert parts == {name.split('.')[0] for name, size in gradients.items() if size > 0}


def excepted(model: nn.Module, names: set[str]) -> set[str]:
    backbone = type(getattr(model, 'backbone', None)).__name__
    return {name for name in names for owner, pattern, _ in WITHOUT_GRADIENT
            if owner == backbone and re.match(pattern, name)}


def assert_finite(metrics: dict[str, float]) -> None:
    values = [value for value in metrics.values() if isinstance(value, Real)]
    assert values and all(map(math.isfinite, values))


def assert_channels_fit(model: nn.Module) -> None:
    """What neck and heads say they take is what the parts before them say they give."""
    if not hasattr(getattr(model, 'backbone', None), 'out_strides'):
        return  # a backbone from elsewhere, for comparison; it does not say what it gives
    given = list(model.backbone.out_channels)
    if getattr(model, 'neck', None) is not None:
        order = -1 if type(model.neck).__name__ == 'YOLOV3Neck' else 1  # deepest first
        assert list(model.neck.in_channels) == given[::order]
        given = model.neck.out_channels
        given = list(given) if isinstance(given, Sequence) else [given] * 4
    for name, taken, expected in heads_of(model, given):
        assert list(taken) == expected, f'{name} takes {taken} channels and is given {expected}'


HEADS = re.compile(r'head|rpn_head|bbox_head|roi_head\.(bbox_head|mask_head)(\.\d)?')


def heads_of(model: nn.Module, given: list[int]) -> Iterator[tuple[str, Sequence[int], list[int]]]:
    """Name, channels it says it takes, and channels given, of every head that sees the maps."""
    for name, head in model.named_modules():
        if isinstance(getattr(head, 'in_index', None), (int, list, tuple)):  # of mmseg
            indices = [head.in_index] if isinstance(head.in_index, int) else head.in_index
            selected = [given[i] for i in indices]
            joined = head.input_transform == 'resize_concat'
            yield name, as_list(head.in_channels), [sum(selected)] if joined else selected
        elif HEADS.fullmatch(name) and not isinstance(head, nn.ModuleList):
            taken = as_list(head.in_channels)
            yield name, taken, given[-len(taken):]
        if hasattr(head, 'c1_bottleneck'):
            yield name, [head.c1_bottleneck.in_channels], given[:1]


def as_list(channels: int | Sequence[int]) -> list[int]:
    return [channels] if isinstance(channels, int) else list(channels)


# What is asserted would also fail.


@pytest.mark.parametrize('name, option, channels', [
    ('retinanet_crossformer_t_coco', 'model.neck.in_channels', [64, 128, 256, 500]),
    ('mask_rcnn_xformer_coco', 'model.roi_head.mask_head.in_channels', 128),
    ('yolov3_xformer_coco', 'model.neck.in_channels', [96, 128, 160]),
    ('fpn_xformer_ade20k', 'model.decode_head.in_channels', [256, 256, 256, 128]),
    ('upernet_crossvit_s_ade20k', 'model.auxiliary_head.in_channels', 192),
    ('xformer_cifar10', 'model.head.in_channels', 128),
])
def test_wrong_channels_are_noticed(name: str, option: str, channels: int | list[int]) -> None:
    assert_channels_fit(build_model(load_config(f'{name}.py')))
    wrong = build_model(load_config(f'{name}.py', {option: channels}))
    with pytest.raises(AssertionError):
        assert_channels_fit(wrong)


def test_a_parameter_without_gradient_is_noticed() -> None:
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    names = [name for name, _ in model.named_parameters()]
    assert_every_parameter_learns(model, dict.fromkeys(names, 1.))
    for gradients in (dict.fromkeys(names[:-1], 1.), dict.fromkeys(names, math.nan),
                      {name: float('head' in name) for name in names}):
        with pytest.raises(AssertionError):
            assert_every_parameter_learns(model, gradients)


def test_only_sizes_are_reduced() -> None:
    cfg, reduced = (load_config('fpn_crossformer_s_ade20k.py') for _ in range(2))
    reduce_sizes(reduced)
    sizes = [node[key] for node, key in sizes_in(reduced.train_dataloader.dataset)]
    assert sorted(sizes) == [(64, 64), (64, 64), (256, 64)]
    for node, key in sizes_in([reduced[loader].dataset for loader in LOADERS]):
        node[key] = None
    for node, key in sizes_in([cfg[loader].dataset for loader in LOADERS]):
        node[key] = None
    assert [reduced[loader] for loader in LOADERS] == [cfg[loader] for loader in LOADERS]
