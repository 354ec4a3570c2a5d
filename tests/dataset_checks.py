"""Toy data for a config, and the check of it as a user calls it."""
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_data import accept_toy_cifar10, make_toy_data

from xvit_mm.utils.config import load_config

TOOL = Path(__file__).parent.parent / 'tools' / 'check_dataset.py'
COCO, BCCD = 'retinanet_crossformer_s_coco', 'retinanet_crossformer_mini_bccd'
MASKS = 'mask_rcnn_crossformer_s_coco'
ADE, CITYSCAPES = 'fpn_crossformer_s_ade20k', 'fpn_crossformer_s_cityscapes'
STUFF, CAMVID = 'vtfpn_r50_cocostuff', 'fpn_r18_camvid'
IMAGENET, CIFAR10 = 'crossformer_s_imagenet', 'xformer_cifar10'
TRAIN = 'annotations/instances_train2017.json'
CIFAR10_CLASSES = 'airplane automobile bird cat deer dog frog horse ship truck'.split()


@pytest.fixture(scope='module')
def toys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a config to a folder with toy data, made once."""
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            make_toy_data(load_config(f'{name}.py', data_root=folders[name]), folders[name])
        return folders[name]

    return folder_of


@pytest.fixture
def check(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, output and error of the tool."""
    accept_toy_cifar10(monkeypatch)
    monkeypatch.setattr('signal.signal', lambda *args: None)

    def run(name: str, root: Path | None, *arguments: str) -> tuple[int, str, str]:
        data_root = () if root is None else ('--data-root', str(root))
        monkeypatch.setattr(sys, 'argv', [
            str(TOOL), f'{name}.py', *data_root, '--out', str(tmp_path / 'drawn'), *arguments])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            code = end.code
        output, error = capsys.readouterr()
        return code, ' '.join(output.split()), error

    return run
