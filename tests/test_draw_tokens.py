"""Pictures of where visual tokens look: of a backbone, of a neck, and of what cannot be drawn."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from mmengine.config import Config
from tool_runs import Ended, run_tool

from xvit_mm.apis import build_model
from xvit_mm.apis.token_pictures import look, write_token_pictures
from xvit_mm.checkpoints import CheckpointError
from xvit_mm.models.necks import VTFPN
from xvit_mm.utils.config import ConfigError
from xvit_mm.visualization import draw_tokens

BACKBONE = dict(type='xvit_mm.VTResNet', depth=34, base_channels=8, token_channels=32, num_tokens=4)
NECK = dict(type='xvit_mm.VTFPN', in_channels=[8, 16, 32, 64], out_channels=16, token_channels=32,
            num_tokens=(6, 4, 2, 2), num_outs=4)
RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8)


def config(backbone: dict = BACKBONE, neck: dict | None = None, task: str = 'mmseg') -> Config:
    """A segmentor whose images are padded to multiples of 32, or a classifier for RGB in memory."""
    if task == 'mmpretrain':
        model = dict(type='ImageClassifier', backbone=backbone)
        return Config(dict(
            default_scope=task, model=model, data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),
            test_dataloader=dict(dataset=dict(pipeline=[dict(type='PackInputs')]))))
    model = dict(
        type='EncoderDecoder', backbone=backbone, neck=neck,
        decode_head=dict(type='FCNHead', in_channels=16, channels=8, num_classes=2),
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[0] * 3, std=[1] * 3, bgr_to_rgb=True,
            test_cfg=dict(size_divisor=32)), test_cfg=dict(mode='whole'))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                dict(type='PackSegInputs')]
    return Config(dict(default_scope=task, model=model, test_pipeline=pipeline))


def weights(cfg: Config, folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), folder / 'weights.pth')
    return folder / 'weights.pth'


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Two of different sizes."""
    paths = [tmp_path / 'wide.png', tmp_path / 'narrow.jpg']
    for path, shape in zip(paths, ((40, 100, 3), (70, 33, 3))):
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return paths


def test_every_module_and_level_gets_a_picture_of_all_its_tokens(images, tmp_path):
    cfg = config(neck=dict(NECK, num_layers=2))
    written = write_token_pictures(
        cfg, weights(cfg, tmp_path), images, tmp_path / 'new' / 'out', columns=4)
    places = ['vt0', 'vt1', 'vt2'] + [f'neck{i}_level{j}' for i in range(2) for j in range(4)]
    assert [path.name for path in written] == [
        f'{image}_{place}.png' for image in ('wide', 'narrow') for place in places]
    pictures = {path.name: cv2.imread(str(path)) for path in written}
    # The image and 4 tokens in 2 rows of 4 panels, or the image and 2 tokens in one row.
    wide, narrow = pictures['wide_vt2.png'], pictures['narrow_neck1_level3.png']
    assert wide.shape[1] > 1.2 * narrow.shape[1]
    assert all(picture.std() > 10 for picture in pictures.values())


def test_the_attention_of_a_neck_is_what_its_tokens_were_made_with():
    torch.manual_seed(0)
    neck = VTFPN([8, 16], 16, num_outs=2, num_tokens=(3, 5), token_channels=32, num_layers=2).eval()
    maps, averaged = {}, {}
    for i, layer in enumerate(neck.layers):
        for j, level in enumerate(layer.tokenizers):
            level.register_forward_pre_hook(lambda _, args, key=(i, j): maps.update({key: args[0]}))
            level.project.register_forward_pre_hook(
                lambda _, args, key=(i, j): averaged.update({key: args[0]}))
    inputs = torch.randn(2, 8, 12, 10), torch.randn(2, 16, 6, 5)
    with torch.no_grad():
        neck(inputs)
    attentions = neck.token_attention(inputs)
    for (i, j), expected in averaged.items():
        attention = attentions[i][j]
        assert attention.shape == (2, (3, 5)[j], *inputs[j].shape[2:])
        torch.testing.assert_close(
            torch.einsum('bchw,blhw->bcl', maps[i, j], attention), expected)
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, (3, 5)[j]))
    assert len(averaged) == 4


def test_attention_lies_over_its_pixels_where_the_batch_is_padded(images, tmp_path):
    cfg = config()
    model = build_model(cfg).eval()
    hot = torch.zeros(1, 1, 4, 8)
    hot[..., 2, 5] = 1.
    model.backbone.token_attention = lambda batch: (
        [hot] if batch.shape[2:] == (64, 128) else pytest.fail(f'shape {batch.shape}'))
    shown, attentions = look(model, cfg, cv2.imread(str(images[0])))
    attention = attentions['vt0'][0]
    assert shown.shape == (40, 100, 3) and attention.shape == (40, 100)
    y, x = np.unravel_index(attention.argmax(), attention.shape)
    # Cell (2, 5) of stride 16 has its centre at (40, 88); row 40 is just below the image.
    assert (y, x) in [(39, 87), (39, 88)]


@pytest.mark.parametrize('task', ['mmseg', 'mmpretrain'])
def test_image_and_model_input_have_the_order_of_channels_that_the_config_means(task):
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[..., 0] = 255  # BGR, as files are read
    cfg = config(task=task)
    model = build_model(cfg).eval()
    seen = []
    model.backbone.token_attention = lambda batch: seen.append(batch) or []
    shown, _ = look(model, cfg, blue)
    assert shown[0, 0].tolist() == [0, 0, 255]
    assert seen[0][0, :, 0, 0].tolist() == [0, 0, 255]


def test_images_go_through_the_pipeline_of_the_test_set(images):
    cfg = config()
    resize = dict(type='Resize', scale=(50, 20))
    joined = [dict(pipeline=[resize, *cfg.test_pipeline])]
    cfg.test_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=joined))
    shown, _ = look(build_model(cfg).eval(), cfg, cv2.imread(str(images[0])))
    assert shown.shape == (20, 50, 3)


def test_a_picture_that_cannot_be_written_is_an_error(images, tmp_path):
    cfg = config()
    (tmp_path / 'out' / 'wide_vt0.png').mkdir(parents=True)
    with pytest.raises(OSError, match='wide_vt0.png'):
        write_token_pictures(cfg, weights(cfg, tmp_path), images, tmp_path / 'out')


def test_a_checkpoint_of_torchvision_is_understood(images, tmp_path):
    cfg = config(dict(type='xvit_mm.VTResNet', depth=18, num_tokens=2, token_channels=32))
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet18.pth')
    assert len(write_token_pictures(cfg, tmp_path / 'resnet18.pth', images[:1], tmp_path)) == 2


def test_a_neck_on_a_foreign_backbone_is_drawn_with_its_trained_weights(images, tmp_path, capsys):
    cfg = config(RESNET, NECK)
    written = write_token_pictures(cfg, weights(cfg, tmp_path), images[:1], tmp_path)
    assert [path.stem for path in written] == [f'wide_neck0_level{i}' for i in range(4)]
    tensors = len(torch.load(tmp_path / 'weights.pth')['state_dict'])
    assert f'{tensors} of {tensors} tensors loaded' in capsys.readouterr().out
    torch.save(dict(state_dict=dict(nonsense=torch.ones(1))), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='other.pth does not fit'):
        write_token_pictures(cfg, tmp_path / 'other.pth', images, tmp_path)


@pytest.mark.parametrize('cfg, message', [
    (config(RESNET, dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16,
                         num_outs=4)), r'no visual tokens to draw \(backbone ResNet, neck FPN\)'),
    (config(dict(BACKBONE, tokenizer='pooling')), 'pooling tokenizer has no attention'),
])
def test_models_without_tokens_to_draw_are_refused(cfg, message, images, tmp_path):
    path = weights(cfg, tmp_path)
    with pytest.raises(ConfigError, match=message):
        write_token_pictures(cfg, path, images, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_images_that_cannot_be_drawn_are_named_before_anything_is_written(images, tmp_path):
    cfg, out = config(), tmp_path / 'out'
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'sub').mkdir()
    same_name = images[0].rename(tmp_path / 'sub' / 'narrow.png')
    for paths, message in [((images[1], tmp_path / 'text.png'), 'text.png is damaged, or not an image'),
                           ((images[1], tmp_path / 'gone.png'), 'gone.png does not exist'),
                           ((images[1], same_name), 'several images are called narrow')]:
        with pytest.raises(ConfigError, match=message):
            write_token_pictures(cfg, 'unused.pth', paths, out)
    assert not out.exists()


def test_the_tool_writes_pictures_or_one_line_of_error(images, tmp_path):
    cfg = config(task='mmpretrain')
    cfg.dump(tmp_path / 'cfg.py')
    path = weights(cfg, tmp_path)

    def run(*arguments) -> Ended:
        return run_tool('draw_tokens', tmp_path / 'cfg.py', path, *arguments, '--out-dir',
                        tmp_path / 'out')

    done = run(*images)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / 'out' / 'narrow_vt2.png')
    assert len(list((tmp_path / 'out').iterdir())) == 6
    failed = run(tmp_path / 'gone.png')
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith('error: image')
    assert 'Trace' not in failed.stderr


def test_tokens_are_drawn_in_rows_where_they_look():
    image = np.full((32, 48, 3), 128, np.uint8)
    attention = torch.zeros(6, 2, 3)
    for i in range(6):
        attention[i, i // 3, i % 3] = 1
    picture = draw_tokens(image, attention, columns=4)
    assert picture.shape == (2 * 32, 4 * 48, 3) and picture.dtype == np.uint8
    red = picture[..., 0].astype(int) - picture[..., 2]
    for i in range(6):
        tile = red[i // 4 * 32:, i % 4 * 48:][:32, :48]
        y, x = np.unravel_index(tile.argmax(), tile.shape)
        assert (y // 16, x // 16) == (i // 3, i % 3)
    assert not picture[32:, 2 * 48:].any()
    with pytest.raises(ValueError, match=r'give \[L, h, w\]'):
        draw_tokens(image, attention[None])
