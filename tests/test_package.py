"""The package as others meet it: names, scopes, imports, shipped configs."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import SMALL

import xvit_mm
from xvit_mm.utils.config import ConfigError, load_config
from xvit_mm.utils.shipped_configs import config_folder, list_configs, list_renamed

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.training
def test_importing_the_package_is_cheap():
    heavy = python('import sys, xvit_mm\n'
                   'print([m for m in ("mmdet", "mmseg", "mmpretrain", "mmcv.ops", "torchvision", '
                   '"matplotlib.pyplot") if m in sys.modules])')
    assert heavy.strip() == '[]'


@pytest.mark.training
def test_bare_names_resolve_once_the_package_is_imported():
    out = python('import xvit_mm\nfrom mmdet.registry import MODELS\n'
                 'print(MODELS.get("CrossFormer") is MODELS.get("xvit_mm.CrossFormer"))')
    assert out.strip().endswith('True')


@pytest.mark.training
@pytest.mark.parametrize('package', ['mmdet', 'mmseg', 'mmpretrain'])
def test_scoped_names_build_in_a_fresh_process(package):
    out = python(f'from {package}.registry import MODELS\n'
                 f'for name, settings in {SMALL!r}.items():\n'
                 '    model = MODELS.build(dict(type=f"xvit_mm.{name}", **settings))\n'
                 '    print(type(model).__name__, len(model.out_channels))')
    built = [line for line in out.splitlines() if ' - mmengine - ' not in line]
    assert built[-len(SMALL):] == [f'{name} 4' for name in SMALL]


def test_inner_blocks_are_not_registered():
    from xvit_mm.registry import MODELS
    assert not [name for name in MODELS.module_dict if 'Block' in name or 'Attention' in name]


def test_a_bare_name_that_is_taken_stays_with_its_owner():
    from mmengine.registry import MODELS as ROOT_MODELS

    from xvit_mm.registry import MODELS

    class ResNetOfSomebody:
        pass

    ROOT_MODELS.register_module(name='TakenName', module=ResNetOfSomebody)
    try:
        @MODELS.register_module(name='TakenName')
        class Ours:
            pass
        assert ROOT_MODELS.module_dict['TakenName'] is ResNetOfSomebody
        assert ROOT_MODELS.get('xvit_mm.TakenName') is Ours
    finally:
        del ROOT_MODELS.module_dict['TakenName'], MODELS.module_dict['TakenName']


def test_shipped_configs_are_found_by_name():
    path = Path(xvit_mm.cfg('retinanet_crossformer_s_coco'))
    assert path.is_file() and path == Path(xvit_mm.cfg('retinanet_crossformer_s_coco.py'))
    with pytest.raises(FileNotFoundError, match='closest: .*retinanet_crossformer_s_coco'):
        xvit_mm.cfg('retinanet_crosformer_s_coco')
    with pytest.raises(FileNotFoundError, match='similar name; docs/model_zoo.md') as error:
        xvit_mm.cfg('zzz')
    assert 'closest' not in str(error.value)


def test_a_config_is_found_by_name_in_every_folder():
    paths = list_configs(config_folder())
    assert {path.parent.name for path in paths} == {'configs', 'small', 'vt_paper'}
    assert len({path.stem for path in paths}) == len(paths)
    assert all(xvit_mm.cfg(path.stem) == str(path) for path in paths)
    # Neither a fragment nor a mere name of one is a config of its own.
    with pytest.raises(FileNotFoundError):
        xvit_mm.cfg('retinanet')


@pytest.mark.parametrize('old, present', list_renamed(config_folder()).items())
def test_an_old_name_gives_the_same_config_and_a_warning(old, present):
    with pytest.warns(FutureWarning, match=f'{old}.*now called.*{present}'):
        from_old = load_config(f'{old}.py')
    assert from_old.to_dict() == load_config(f'{present}.py').to_dict()
    with pytest.warns(FutureWarning, match=present):
        load_config(config_folder() / f'{old}.py')


def test_the_old_path_of_a_config_that_moved_still_works():
    moved = load_config(config_folder() / 'retinanet_r18_bccd.py')
    assert moved.to_dict() == load_config(xvit_mm.cfg('retinanet_r18_bccd')).to_dict()


def test_a_missing_file_elsewhere_is_not_replaced_by_a_shipped_config(tmp_path):
    with pytest.raises(ConfigError, match='does not exist'):
        load_config(tmp_path / 'retinanet_crossformer_s_coco.py')


def test_a_users_config_can_inherit_a_shipped_one(tmp_path):
    from mmengine.config import Config
    (tmp_path / 'mine.py').write_text(
        "_base_ = [__import__('xvit_mm').cfg('retinanet_crossformer_s_coco')]\n"
        "model = dict(backbone=dict(arch='t'), neck=dict(in_channels=[64, 128, 256, 512]))\n")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.backbone.arch == 't' and cfg.model.bbox_head.num_classes == 80


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*.py')), ids=lambda p: p.stem)
def test_configs_are_plain_text_that_both_stack_families_read(path):
    text = path.read_text()
    assert not [line for line in text.splitlines() if line.startswith(('import ', 'from '))]
    assert 'mmdet::' not in text and 'mmseg::' not in text and 'mmpretrain::' not in text


def test_a_base_by_the_name_of_a_package_says_what_works_instead(tmp_path):
    from xvit_mm.utils.config import ConfigError, load_config
    (tmp_path / 'mine.py').write_text("_base_ = ['xvit_mm::retinanet_crossformer_s_coco.py']\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / 'mine.py')
    base = re.search('Write `(.*?)`', str(caught.value)).group(1)
    (tmp_path / 'mine.py').write_text(f'_base_ = [{base}]\n')
    assert load_config(tmp_path / 'mine.py').model.type == 'RetinaNet'


@pytest.mark.parametrize('base', [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'])
def test_bases_of_the_packages_are_read_or_the_message_names_a_way(tmp_path, base):
    from xvit_mm.utils.config import ConfigError, load_config
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = ['{base}']\n")
    try:
        cfg = load_config(config)
    except ConfigError as error:
        config.write_text('_base_ = [{}]\n'.format(re.findall('Write `(.*?)`', str(error))[0]))
        cfg = load_config(config)
    assert cfg.model.backbone.type.startswith('ResNet')
