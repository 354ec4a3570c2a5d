"""What changes in a config when its backbone is replaced, and what is refused."""
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from shipped_configs import shipped, small, swapped
from small_models import SMALL

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.swap import swap_backbone
from xvit_mm.swap.maps import Level, build, matching_stages
from xvit_mm.swap.trial import _reason, _training_step, model_config
from xvit_mm.utils.config import ConfigError, load_config


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / 'rotated.py'
    config.write_text("default_scope = 'mmrotate'\nmodel = dict(type='mmdet.RetinaNet')")
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='mmrotate.* not installed here; pip install onedl-mmro'):
        swap_backbone(config, small('CrossFormer'), tmp_path / 'new.py')


def test_a_package_that_only_the_method_needs_is_named() -> None:
    error = _reason(_training_step, torch.nn.Linear(1, 1), ImportError(
        'Please run "pip install sklearn" to install sklearn first.'))
    assert error == ('Linear needs a package that is not installed here: Please run "pip install '
                     'scikit-learn" to install sklearn first')


def test_new_config_inherits_and_explains_every_change(tmp_path: Path) -> None:
    new = swapped('mmdet/retinanet/retinanet_r50_fpn_1x_coco', 'CrossFormer', tmp_path)
    text = (tmp_path / 'new.py').read_text()
    old = load_config(shipped('mmdet/retinanet/retinanet_r50_fpn_1x_coco'))
    assert new.train_dataloader == old.train_dataloader
    assert new.model.bbox_head == old.model.bbox_head
    assert 'import' not in text and 'train_dataloader' not in text
    assert all(len(line) <= 100 for line in text.splitlines() if '_base_' not in line)
    for entry in ('backbone=', 'out_indices=', 'in_channels=', 'start_level=', 'optimizer='):
        before = text[:text.index(f' {entry}')].rstrip().splitlines()[-1]
        assert before.strip().startswith('#'), entry
    assert (new.model.neck.in_channels, new.model.neck.start_level) == ([64, 128, 256], 0)
    assert new.model.backbone.out_indices == (1, 2, 3)


def test_yolov3_gets_its_channels_deepest_first(tmp_path: Path) -> None:
    new = swapped('mmdet/yolo/yolov3_d53_8xb8-ms-608-273e_coco', 'XFormer', tmp_path)
    assert new.model.neck.in_channels == [32, 24, 16]
    assert new.optim_wrapper.clip_grad == dict(max_norm=35, norm_type=2)
    # Batch 64, four times the recipe's.
    assert new.optim_wrapper.optimizer == dict(type='AdamW', lr=4e-4, weight_decay=0.05)


def test_ssd_repeats_its_channels(tmp_path: Path) -> None:
    new = swapped('mmdet/ssd/ssd300_coco', 'VTResNet', tmp_path)
    assert new.model.neck.in_channels == (16, 32)
    assert new.model.neck.out_channels == new.model.bbox_head.in_channels
    assert new.model.neck.out_channels[:3] == (16, 32, 512)


def test_caffe_colours_become_those_of_imagenet(tmp_path: Path) -> None:
    new = swapped('mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'CrossViT', tmp_path)
    assert new.model.data_preprocessor.bgr_to_rgb
    assert new.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert 'Before: mean [102.9801, 115.9465, 122.7717], std [1.0, 1.0, 1.0]' in re.sub(
        r'\n +# ', ' ', (tmp_path / 'new.py').read_text())


def test_dilated_segmentor_reads_the_deepest_maps_and_its_rates_follow(tmp_path: Path) -> None:
    new = swapped('mmseg/pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024', 'CrossViT', tmp_path)
    assert new.model.pretrained is None
    assert new.model.backbone.out_indices == (2, 3)
    assert (new.model.decode_head.in_index, new.model.auxiliary_head.in_index) == (1, 0)
    assert (new.model.decode_head.in_channels, new.model.auxiliary_head.in_channels) == (48, 48)
    # PolyLR ends at eta_min, an absolute rate; it must stay below the new learning rate.
    assert new.optim_wrapper.optimizer.lr == 6e-5
    assert new.param_scheduler[0].eta_min == pytest.approx(6e-5 * 1e-4 / 1e-2)
    assert 'Output stride 32 instead of 8' in (tmp_path / 'new.py').read_text()


def test_details_of_deeplab_come_from_the_first_map(tmp_path: Path) -> None:
    new = swapped('mmseg/deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
                  'CrossFormer', tmp_path)
    head = new.model.decode_head
    assert (head.c1_in_channels, head.in_channels, head.in_index) == (32, 256, 2)
    assert new.model.backbone.out_indices == (0, 2, 3)


def test_joined_maps_set_the_width_of_the_head_that_joins_them(tmp_path: Path) -> None:
    new = swapped('mmseg/hrnet/fcn_hr18_4xb4-160k_ade20k-512x512', 'CrossFormer', tmp_path)
    assert new.model.decode_head.in_channels == [32, 64, 128, 256]
    assert new.model.decode_head.channels == 480


def test_recipe_follows_the_decoder(tmp_path: Path) -> None:
    new = swapped('mmseg/sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024', 'CrossFormer', tmp_path)
    assert new.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)


def test_adamw_of_the_user_stays_with_the_rules_that_still_apply(tmp_path: Path) -> None:
    segformer = 'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512'
    new = swapped(segformer, 'CrossViT', tmp_path).optim_wrapper
    assert new.optimizer == load_config(shipped(segformer)).optim_wrapper.optimizer
    # pos_block was MiT's, head and norm are not.
    assert new.paramwise_cfg == dict(flat_decay_mult=0., custom_keys=dict(
        norm=dict(decay_mult=0.), head=dict(lr_mult=10.), cls_token=dict(decay_mult=0.),
        pos_embed=dict(decay_mult=0.)))
    assert 'The present AdamW stays' in (tmp_path / 'new.py').read_text()


def test_mixed_precision_stays_and_layer_decay_of_the_old_backbone_goes(tmp_path: Path) -> None:
    new = swapped('mmseg/convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
                  'CrossFormer', tmp_path).optim_wrapper
    assert new.type == 'AmpOptimWrapper'
    assert new.constructor == 'DefaultOptimWrapperConstructor'
    assert new.paramwise_cfg == dict(flat_decay_mult=0.)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('config', [
    'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'mmseg/sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024',
])
def test_norms_biases_and_tokens_of_the_backbone_do_not_decay(
    config: str, name: str, tmp_path: Path
) -> None:
    cfg = swapped(config, name, tmp_path)
    lr, decay = (cfg.optim_wrapper.optimizer[key] for key in ('lr', 'weight_decay'))
    expected_lr = lr * (0.1 if 'mask2former' in config else 1.)
    model = build(model_config(cfg), cfg.default_scope)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    seen = set()
    for group in optimizer.param_groups:
        parameter, = group['params']
        key = names[id(parameter)]
        if key.startswith('backbone.'):
            free = parameter.ndim == 1 or 'cls_token' in key or 'pos_embed' in key
            assert group['weight_decay'] == (0. if free else decay), key
            assert group['lr'] == pytest.approx(expected_lr), key
            seen.add(key)
    assert len(seen) == len(list(model.backbone.parameters()))


def test_classifier_gets_the_head_of_the_backbone(tmp_path: Path) -> None:
    new = swapped('mmpretrain/swin_transformer/swin-tiny_16xb64_in1k', 'CrossViT', tmp_path).model
    assert new.neck is None and new.backbone.out_type == 'cls_token'
    assert new.head == dict(
        type='xvit_mm.CrossViTClsHead', num_classes=1000, in_channels=(32, 48),
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'))


def test_head_for_several_labels_stays(tmp_path: Path) -> None:
    config = shipped('mmpretrain/resnet/resnet50_8xb32_in1k')
    (tmp_path / 'user.py').write_text(
        f"_base_ = {str(config)!r}\nmodel = dict(head=dict(_delete_=True, "
        "type='MultiLabelLinearClsHead', num_classes=5, in_channels=2048))\n")
    swap_backbone(tmp_path / 'user.py', small('CrossViT'), tmp_path / 'new.py')
    new = Config.fromfile(tmp_path / 'new.py').model
    assert new.head == dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=48)
    assert new.neck == dict(type='GlobalAveragePooling')


def test_swapped_config_can_be_swapped_again(tmp_path: Path) -> None:
    swapped('mmpretrain/resnet/resnet50_8xb32_in1k', 'CrossFormer', tmp_path)
    swap_backbone(tmp_path / 'new.py', small('VTResNet'), tmp_path / 'newer.py')
    text = (tmp_path / 'newer.py').read_text()
    assert "_base_ = 'new.py'" in text
    assert Config.fromfile(tmp_path / 'newer.py').model.head.type == 'xvit_mm.VTClsHead'


def test_dense_crossformer_pp_has_the_groups_of_the_released_models(tmp_path: Path) -> None:
    swap_backbone(shipped('mmdet/retinanet/retinanet_r50_fpn_1x_coco'),
                  dict(type='xvit_mm.CrossFormer', arch='pp_s'), tmp_path / 'new.py', trial=False)
    backbone = Config.fromfile(tmp_path / 'new.py').model.backbone
    assert (backbone.group_size, backbone.interval) == ((7, 7, 7, 7), (8, 4, 2, 1))
    assert backbone.drop_path_rate == 0.2


def test_checkpoint_is_loaded_or_refused(tmp_path: Path) -> None:
    config = shipped('mmpretrain/resnet/resnet50_8xb32_in1k')
    backbone = small('XFormer')
    weights = build(dict(backbone, out_indices=(3,)), 'mmpretrain').state_dict()
    torch.save(weights, tmp_path / 'good.pth')
    torch.save({'conv.weight': torch.zeros(2)}, tmp_path / 'bad.pth')
    out = tmp_path / 'new.py'
    with pytest.raises(CheckpointError, match='not a checkpoint of XFormer'):
        swap_backbone(config, backbone, out, checkpoint=str(tmp_path / 'bad.pth'))
    with pytest.raises(ConfigError, match='does not exist'):
        swap_backbone(config, backbone, out, checkpoint='none.pth')
    assert not out.exists()
    swap_backbone(config, backbone, out, checkpoint=str(tmp_path / 'good.pth'))
    assert Config.fromfile(out).model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=str(tmp_path / 'good.pth'))


def test_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    config, out = shipped('mmpretrain/resnet/resnet50_8xb32_in1k'), tmp_path / 'new.py'
    out.write_text('precious')
    with pytest.raises(ConfigError, match='--force'):
        swap_backbone(config, small('XFormer'), out)
    assert out.read_text() == 'precious'
    swap_backbone(config, small('XFormer'), out, force=True, trial=False, keep_optimizer=True)
    assert Config.fromfile(out).optim_wrapper == load_config(config).optim_wrapper
    with pytest.raises(ConfigError, match='itself'):
        swap_backbone(out, small('XFormer'), out, force=True)


def test_other_kinds_of_config_are_refused(tmp_path: Path) -> None:
    out = tmp_path / 'new.py'
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    pass\n')
    (tmp_path / 'old.py').write_text("model = dict(type='RetinaNet', backbone=dict(type='ResNet'))")
    (tmp_path / 'data.py').write_text("default_scope = 'mmdet'")
    for name, message in (('lazy', 'pure Python'), ('old', 'default_scope=None'),
                          ('data', 'no model'), ('absent', 'does not exist')):
        with pytest.raises(ConfigError, match=message):
            swap_backbone(tmp_path / f'{name}.py', small('XFormer'), out)
    with pytest.raises(ConfigError, match='choose from xvit_mm.CrossFormer'):
        swap_backbone(tmp_path / 'old.py', dict(type='ResNet'), out)


def test_maps_are_matched_by_stride_or_from_the_deepest() -> None:
    def stages(*strides: int, by_depth: bool) -> list[int]:
        return matching_stages([Level(1, stride) for stride in strides], by_depth=by_depth)

    assert stages(8, 16, 32, by_depth=False) == stages(8, 16, 32, by_depth=True) == [1, 2, 3]
    assert stages(16, by_depth=False) == [2] and stages(16, by_depth=True) == [3]
    for strides in ((4, 8, 8, 8), (16, 16, 16, 16), (4, 8, 16, 32)):
        assert stages(*strides, by_depth=True) == [0, 1, 2, 3]
    for strides, by_depth in (((8, 8), False), ((2, 4, 8), True), ((16, 8, 4), True),
                              ((4, 8, 16, 32, 64), False)):
        with pytest.raises(ConfigError, match='those of xvit_mm return'):
            stages(*strides, by_depth=by_depth)


def test_the_tool_writes_a_config_or_says_in_a_line_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['swap_backbone.py', *map(str, arguments)])
        DefaultScope._instance_dict.clear()
        runpy.run_path(str(Path(__file__).parent.parent / 'tools/swap_backbone.py'),
                       run_name='__main__')

    config, out = shipped('mmpretrain/resnet/resnet50_8xb32_in1k'), tmp_path / 'new.py'
    run(config, '--backbone', 'VTResNet', '--arch', 'r18', '--out', out,
        '--backbone-options', 'with_cp=True')
    assert 'xvit_mm.VTResNet in place of ResNet; one training step' in capsys.readouterr().out
    backbone = Config.fromfile(out).model.backbone
    assert backbone.arch == 'r18' and backbone.with_cp
    run(config, '--backbone', 'XFormer', '--out', tmp_path / 'xformer.py')
    assert Config.fromfile(tmp_path / 'xformer.py').model.backbone.arch == 's'
    with pytest.raises(SystemExit) as stop:
        run(config, '--backbone', 'VTResNet', '--out', out)
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: --out {str(out)!r} exists; --force overwrites it\n"
    with pytest.raises(SystemExit):
        run(config, '--backbone', 'VTResNet', '--out', tmp_path / 'x.py', '--backbone-options', 'cp')
    assert '--backbone-options cp: give NAME=VALUE' in capsys.readouterr().err
