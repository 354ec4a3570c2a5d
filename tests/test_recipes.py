"""The snippets of docs/recipes.md, run one by one."""
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from xvit_mm.apis import build_model
from xvit_mm.utils.config import load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'recipes.md').read_text(encoding='utf-8')
PYTHON = re.findall(r'^```python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in re.findall(r'^```bash\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
            for line in block.splitlines() if '# not run' not in line]


def snippet(beginning: str) -> str:
    """The one Python snippet that holds this."""
    found, = (code for code in PYTHON if beginning in code)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The files that the snippets name, in their own work folder."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = cv2.resize(noise, (80, 60))
    for name in ('image.jpg', 'images/a.jpg', 'more/b.png'):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, image)
    video = cv2.VideoWriter('clip.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 5, (80, 60))
    video.write(image)
    video.release()
    cfg = load_config('retinanet_crossformer_demo')
    torch.save(dict(state_dict=build_model(cfg).state_dict()), 'weights.pth')
    for name, losses in (('first', (3., 2.)), ('second', (4., 1.))):
        log = Path('work_dirs', name, '20260101_000000', 'vis_data', 'scalars.json')
        log.parent.mkdir(parents=True)
        lines = [dict(loss=loss, iter=10 * i, step=10 * i) for i, loss in enumerate(losses, 1)]
        lines.append({'coco/bbox_mAP': losses[1] / 10, 'step': 20})
        log.write_text('\n'.join(map(json.dumps, lines)))
    return tmp_path


def test_predictions_in_python(folder, capsys):
    namespace: dict = {}
    exec(snippet('Predictor('), namespace)
    assert len(namespace['predictor'].classes) == 5


def test_a_config_on_top_of_one_that_ships(folder):
    Path('mine.py').write_text(snippet('_base_ = ['))
    cfg = Config.fromfile('mine.py')
    assert (cfg.model.backbone.type, cfg.model.backbone.arch) == ('xvit_mm.CrossFormer', 't')
    with torch.device('meta'):
        build_model(cfg)


def test_a_config_in_pure_python(folder):
    Path('pure.py').write_text(snippet('ImageClassifier'))
    model = build_model(Config.fromfile('pure.py')).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 10)


def test_mmrotate_trains_with_our_backbone_without_an_import():
    """In its own process: here the package has been imported."""
    mmrotate = pytest.importorskip('mmrotate')
    folder = Path(mmrotate.__file__).parent / '.mim' / 'configs' / 'rotated_retinanet'
    code = snippet('rotated-retinanet').replace("_base_ = '", f"_base_ = '{folder}/")
    done = subprocess.run([sys.executable, '-c', _ROTATED, code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


_ROTATED = '''
import sys
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

cfg = Config.fromstring(sys.argv[1], '.py')
init_default_scope('mmrotate')
assert 'xvit_mm' not in sys.modules
model = MODELS.build(cfg.model).train()
from mmdet.structures import DetDataSample
from mmrotate.structures.bbox import RotatedBoxes
shape = (128, 128)
sample = DetDataSample(metainfo=dict(
    img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape,
    scale_factor=(1., 1.)))
sample.gt_instances = InstanceData(
    bboxes=RotatedBoxes(torch.tensor([[60., 60., 40., 20., 0.3]])), labels=torch.tensor([1]))
sample.ignored_instances = InstanceData(
    bboxes=RotatedBoxes(torch.zeros(0, 5)), labels=torch.zeros(0, dtype=torch.long))
losses = model(torch.randn(1, 3, *shape), [sample], mode='loss')
sum(sum(loss) for loss in losses.values()).backward()
assert next(model.backbone.parameters()).grad.abs().sum() > 0
'''


def test_paths_of_data_for_stock_tools(folder):
    namespace: dict = {}
    exec(snippet('merge_from_dict'), namespace)
    cfg = namespace['cfg']
    assert cfg.train_dataloader.dataset.data_root == 'my/coco/'
    assert 'my/coco' in cfg.val_evaluator.ann_file


def test_learning_rates_by_depth(folder):
    from mmengine.optim import build_optim_wrapper
    namespace: dict = {}
    exec(snippet('layer_decay_rate'), namespace)
    cfg = load_config('retinanet_crossformer_demo')
    groups = build_optim_wrapper(
        build_model(cfg), namespace['optim_wrapper']).optimizer.param_groups
    rates = {group['lr'] for group in groups}
    assert max(rates) == 1e-4 and min(rates) < 0.75**5 * 1e-4


@pytest.mark.parametrize('beginning', ['torchvision', 'timm'])
def test_snippets_for_other_libraries_run(beginning):
    pytest.importorskip(beginning)
    namespace: dict = {}
    exec(snippet(f'from {beginning}'), namespace)
    if beginning == 'torchvision':
        sum(namespace['losses'].values()).backward()
        trunk = namespace['model'].backbone.trunk
        assert all(parameter.grad is not None for parameter in trunk.parameters())


@pytest.mark.training
@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch 2.7 or newer')
def test_a_program_in_python():
    namespace: dict = {}
    exec(snippet('export_program('), namespace)
    assert namespace['maps'][0].shape[2:] == (25, 40)
    assert namespace['approximate_maps'][0].shape == namespace['maps'][0].shape


@pytest.mark.training
@pytest.mark.parametrize('command', COMMANDS)
def test_commands_of_the_page_run(command, folder, monkeypatch, capsys):
    """In this process: the tools are tested as programs elsewhere."""
    if '.pt2' in command and not hasattr(torch.compiler, 'is_exporting'):
        pytest.skip('torch 2.7 or newer')
    if '.onnx' in command:
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    program, script, *arguments = shlex.split(command)
    assert program == 'python'
    arguments = [dict(CONFIG='retinanet_crossformer_demo', CHECKPOINT='weights.pth').get(a, a)
                 for a in arguments]
    out = Path(arguments[arguments.index('--out') + 1])
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    runpy.run_path(str(ROOT / script), run_name='__main__')
    assert out.exists()
    if 'predict' in command:
        assert {path.name for path in out.iterdir()} == {
            'a.jpg', 'b.jpg', 'clip.mp4', 'predictions.json'}


def test_every_snippet_is_run():
    """One test for each of them: a new one needs another."""
    assert len(PYTHON) == 9 and len(COMMANDS) == 5
