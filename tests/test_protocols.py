"""What the configs do to an image before a model sees it: sizes and colours."""
import math
import os
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope, init_default_scope
from toy_data import accept_toy_cifar10, make_toy_data

from xvit_mm.apis import build_model
from xvit_mm.checkpoints import load_official
from xvit_mm.utils.config import load_config

FOLDER = Path(__file__).resolve().parents[1] / 'configs'
CONFIGS = [path for path in sorted(FOLDER.rglob('*.py')) if '_base_' not in path.parts]
# Transforms that read, or that only pack what is there.
FILES_AND_PACKING = ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs', 'PackSegInputs')


@pytest.fixture(scope='module')
def configs() -> dict[str, Config]:
    return {str(path.relative_to(FOLDER)): load_config(path) for path in CONFIGS}


def once_each(keys: dict[str, Any]) -> list[str]:
    """The first name of each value: what many configs share is tested once."""
    first: dict[str, str] = {}
    for name, key in keys.items():
        first.setdefault(repr(key), name)
    return list(first.values())


# Sizes of test-time augmentation.


def resized(transforms: list[dict], image: np.ndarray) -> tuple[int, ...]:
    """Shape of what the size-changing transforms of a pipeline make of an image."""
    kept = [transform for transform in transforms if transform['type'] not in FILES_AND_PACKING]
    pipeline = Compose([TRANSFORMS.build(transform) for transform in kept])
    given = dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
    return pipeline(given)['img'].shape


def has_view_of_plain_size(cfg: Config, size: tuple[int, int]) -> bool:
    image = np.zeros((*size, 3), np.uint8)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        init_default_scope(cfg.default_scope)
        steps, = [step['transforms'] for step in cfg.tta_pipeline
                  if step['type'] == 'TestTimeAug']
        views = {resized(list(transforms), image) for transforms in product(*steps)}
        return resized(cfg.test_dataloader.dataset.pipeline, image) in views


def test_augmentation_has_a_view_of_the_size_of_plain_testing(configs: dict[str, Config]) -> None:
    augmented = {name: (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline)
                 for name, cfg in configs.items() if cfg.get('tta_pipeline')}
    for data in ('_bccd', '_demo', '_coco', '_ade20k', '_cityscapes'):
        assert any(data in name for name in augmented)
    wrong = [name for name in once_each(augmented) for size in ((90, 120), (101, 67))
             if not has_view_of_plain_size(configs[name], size)]
    assert not wrong


def test_ade20k_is_trained_and_tested_at_the_official_sizes() -> None:
    """Crops are padded to 512 x 512; test images are enlarged to multiples of 32."""
    cfg = load_config(FOLDER / 'fpn_crossformer_s_ade20k.py')
    init_default_scope('mmseg')
    random = np.random.default_rng(0)
    for size in ((333, 500), (120, 900)):
        image = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        short, long = (n * min(512 / min(size), 2048 / max(size)) for n in sorted(size))
        expected = sorted(32 * math.ceil(round(n) / 32) for n in (short, long))
        shape = resized(cfg.test_dataloader.dataset.pipeline, image)
        assert sorted(shape[:2]) == expected
    steps = [step for step in cfg.train_dataloader.dataset.pipeline
             if step['type'] not in FILES_AND_PACKING]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    for _ in range(8):
        labels = random.integers(0, 150, (90, 130), dtype=np.uint8)
        out = pipeline(dict(img=np.full((90, 130, 3), 255, np.uint8), img_shape=(90, 130),
                            gt_seg_map=labels, seg_fields=['gt_seg_map']))
        assert out['img'].shape == (512, 512, 3) and out['gt_seg_map'].shape == (512, 512)
        padded = np.all(out['img'] == (104, 116, 124), axis=2)
        assert (out['gt_seg_map'] == 255).sum() == padded.sum()


# Colours: data sets and mmpretrain's inferencer, which reads files as BGR, must agree.


def pixels_of_loader_and_inferencer(cfg: Config, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model gets for the first test image, [1, 3, H, W], in both ways."""
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.registry import MODELS
    # The model takes no part in it, so a small one will do.
    cfg.model = dict(
        type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=10), head=None,
        data_preprocessor=dict(type='ClsDataPreprocessor', **cfg.data_preprocessor))
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = MODELS.build(cfg.model)
    model._config = cfg
    item = dataset[0]
    info = dataset.get_data_info(0)
    path = info.get('img_path')
    if path is None:
        # A colour is in the file what it is in the data set, if that says in which order it gives
    # it.
        path = root / 'image.png'
        is_bgr = dataset.channel_order == 'bgr'
        cv2.imwrite(str(path), info['img'] if is_bgr else info['img'][..., ::-1])
    batch = next(iter(ImageClassificationInferencer(model).preprocess([str(path)])))
    batch = batch[1] if isinstance(batch, tuple) else batch
    own = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    return tuple(model.data_preprocessor(x)['inputs'] for x in (own, batch))


def test_a_classifier_gets_the_same_pixels_in_testing_and_in_inference(
    configs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept_toy_cifar10(monkeypatch)
    classifiers = {name: (cfg.test_dataloader.dataset, cfg.data_preprocessor)
                   for name, cfg in configs.items() if cfg.default_scope == 'mmpretrain'}
    for index, name in enumerate(once_each(classifiers)):
        root = tmp_path / str(index)
        root.mkdir()
        cfg = load_config(FOLDER / name, data_root=root)
        make_toy_data(cfg, root)
        ours, inferred = pixels_of_loader_and_inferencer(cfg, root)
        assert ours.equal(inferred), name
        # In an image without colours their order would not matter.
        assert not ours.equal(ours.flip(1)), name


def test_a_saved_cifar10_config_gets_what_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configs of training runs before there was a channel order: RGB images, nothing converted."""
    accept_toy_cifar10(monkeypatch)
    cfg = load_config(FOLDER / 'xformer_cifar10.py', data_root=tmp_path)
    make_toy_data(cfg, tmp_path)
    init_default_scope('mmpretrain')
    now = dict(cfg.test_dataloader.dataset)
    saved = {key: value for key, value in now.items() if key != 'channel_order'}
    images = [DATASETS.build(settings)[0]['inputs'] for settings in (now, saved)]
    assert images[0].equal(images[1].flip(0)) and not images[0].equal(images[1])
    with pytest.raises(ValueError, match="channel_order='gbr': choose from 'rgb', 'bgr'"):
        DATASETS.build({**now, 'channel_order': 'gbr'})


# CrossViT: what timm's evaluation makes of an image.

# Photos of your own, to compare on real images as well: XVIT_MM_PHOTOS=FOLDER pytest -s ...
PHOTOS = sorted(Path(os.environ.get('XVIT_MM_PHOTOS', os.devnull)).rglob('*.jpg'))
CROSSVIT = [path for path in CONFIGS if path.stem.startswith('crossvit_')
            and path.stem.endswith('_imagenet') and path.parent == FOLDER]
TIMM_NAMES = {'t': 'tiny', 's': 'small', 'b': 'base'}


def timm_name(path: Path) -> str:
    size = path.stem.removeprefix('crossvit_').removesuffix('_imagenet')
    size = TIMM_NAMES.get(size, size)
    return f'crossvit_{size[:-3]}408' if size.endswith('384') else f'crossvit_{size}_240'


def generated_photo(folder: Path, height: int, width: int) -> Path:
    """A picture with edges and with noise, in a format that every decoder reads alike."""
    from xvit_mm.datasets.shapes import draw_scene
    image = draw_scene(np.random.default_rng(3), num_objects=8).image
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(4).normal(scale=12, size=image.shape)
    path = folder / 'photo.png'
    cv2.imwrite(str(path), np.clip(image + noise, 0, 255).astype(np.uint8))
    return path


def pixels_of_config_and_timm(path: Path, photo: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, 3, H, W] as the model gets it, from the config's test pipeline and from timm's."""
    from mmpretrain.registry import MODELS
    from PIL import Image
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg
    cfg = load_config(path)
    init_default_scope('mmpretrain')
    sample = Compose([TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline])(
        dict(img_path=str(photo), gt_label=0))
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', **cfg.data_preprocessor))
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    settings = resolve_data_config(pretrained_cfg=get_pretrained_cfg(timm_name(path)).to_dict())
    with Image.open(photo) as image:
        theirs = create_transform(**settings)(image.convert('RGB'))[None]
    return preprocessor(batch)['inputs'], theirs


def mean_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """In units of pixels of 0 to 255."""
    deviation = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return float(((ours - theirs) * deviation).abs().mean())


@pytest.mark.parametrize('path', CROSSVIT, ids=lambda path: path.stem)
@pytest.mark.parametrize('size', [(333, 500), (640, 427), (200, 150)])
def test_crossvit_is_tested_on_the_pixels_of_timms_evaluation(
    path: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip('timm')
    ours, theirs = pixels_of_config_and_timm(path, generated_photo(tmp_path, *size))
    side = 408 if '384' in path.stem else 240
    assert ours.shape == theirs.shape == (1, 3, side, side)
    assert mean_difference(ours, theirs) < 0.5


def test_eleven_crossvits_are_tested() -> None:
    assert len(CROSSVIT) == 11


@pytest.mark.parametrize('name', [
    'crossvit_t_imagenet', 'crossvit_9_dagger_imagenet', 'crossvit_15_dagger_384_imagenet'])
def test_crossvit_with_its_pipeline_has_the_logits_of_timm_with_its_own(
    name: str, tmp_path: Path
) -> None:
    timm = pytest.importorskip('timm')
    photo = generated_photo(tmp_path, 375, 500)
    assert logit_deviation(timm, FOLDER / f'{name}.py', photo) < 0.01


def logit_deviation(timm: Any, path: Path, photo: Path) -> float:
    """Of config, data pipeline and random weights from timm's model, transform and same weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(timm_name(path)).eval()
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    model = build_model(load_config(path)).eval()
    load_official(model, theirs.state_dict())
    our_pixels, their_pixels = pixels_of_config_and_timm(path, photo)
    with torch.no_grad():
        ours, expected = model(our_pixels), theirs(their_pixels)
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.skipif(not PHOTOS, reason='XVIT_MM_PHOTOS names no folder with .jpg files')
@pytest.mark.parametrize('name', ['crossvit_s_imagenet', 'crossvit_15_dagger_384_imagenet'])
def test_crossvit_agrees_with_timm_on_real_photos(name: str) -> None:
    timm = pytest.importorskip('timm')
    path = FOLDER / f'{name}.py'
    pixels = max(mean_difference(*pixels_of_config_and_timm(path, photo)) for photo in PHOTOS)
    logits = max(logit_deviation(timm, path, photo) for photo in PHOTOS[:3])
    print(f'{name}, {len(PHOTOS)} photos: pixels differ by {pixels:.1e} of 255, logits by {logits:.1e}')
    assert pixels < 0.5 and logits < 0.01
