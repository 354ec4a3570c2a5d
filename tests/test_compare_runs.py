"""Several runs in one picture and table, and loggers besides the files of a run."""
import io
import json
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config
from rich.console import Console

from xvit_mm.apis.compare_runs import comparison_table, draw_comparison, read_runs
from xvit_mm.utils import config_options
from xvit_mm.utils.config import ConfigError, load_config
from xvit_mm.utils.config_options import use_tracker
from xvit_mm.utils.files import FolderError


def run(folder: Path, losses: dict[int, float], metrics: dict[int, float]) -> Path:
    """A work dir with the log of a training run: losses and mAP by iteration."""
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = []
    for step, loss in losses.items():
        lines.append(dict(loss=loss, iter=step, step=step))
        if step in metrics:
            lines.append({'coco/bbox_mAP': metrics[step], 'step': step})
    log.write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_runs_are_labelled_and_their_best_and_last_values_shown(tmp_path):
    first = run(tmp_path / 'a' / 'run', {10: 3., 20: 2.}, {10: 0.5, 20: 0.4})
    second = run(tmp_path / 'b' / 'run', {10: 2.5}, {10: 0.3})
    runs = read_runs([first, second])
    assert list(runs) == ['a/run', 'b/run']
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table(runs))
    rows = [line.split('│')[1:-1] for line in console.export_text().splitlines() if '/run' in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ['a/run', '20', '2', '0.4 (0.5)'], ['b/run', '10', '2.5', '0.3 (0.3)']]
    draw_comparison(runs, tmp_path / 'new' / 'compared.png')
    assert cv2.imread(str(tmp_path / 'new' / 'compared.png')).shape[1] > 1000
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['compared.png']


def test_folders_that_hold_no_run_or_come_twice_are_refused(tmp_path):
    first = run(tmp_path / 'run', {10: 3.}, {})
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match='empty.* holds no training log'):
        read_runs([first, tmp_path / 'empty'])
    with pytest.raises(ConfigError, match='gone.* is not a folder'):
        read_runs([first, tmp_path / 'gone'])
    with pytest.raises(ConfigError, match='named twice'):
        read_runs([first, first])


def test_no_panel_is_empty(tmp_path):
    runs = read_runs([run(tmp_path / 'small', {10: 3., 20: 2.}, {10: 0.5}),
                      run(tmp_path / 'large', {10: 900., 20: 300.}, {10: 0.3})])
    for history in runs.values():
        history.metrics['coco/bbox_mAP_50'] = {10: 0.7}
    draw_comparison(runs, tmp_path / 'compared.png')
    picture = cv2.imread(str(tmp_path / 'compared.png'))
    # Three panels in two rows: the last quarter is blank.
    height, width = picture.shape[:2]
    assert (picture[height // 2 + 40:, width // 2 + 40:] == 255).all()


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path):
    runs = read_runs([run(tmp_path / 'run', {10: 3.}, {10: 0.5})])
    with pytest.raises(ConfigError, match="compared.txt': the name must end in .png"):
        draw_comparison(runs, tmp_path / 'compared.txt')
    with pytest.raises(ConfigError, match=r'--metrics \[: not a regular expression'):
        draw_comparison(runs, tmp_path / 'compared.png', ['['])
    (tmp_path / 'file').touch()
    with pytest.raises(FolderError, match='file.* is a file'):
        draw_comparison(runs, tmp_path / 'file' / 'compared.png')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'run']


@pytest.mark.parametrize('name, backend', [
    ('tensorboard', 'TensorboardVisBackend'), ('wandb', 'WandbVisBackend')])
def test_a_tracker_is_added_once_or_says_what_to_install(name, backend, monkeypatch):
    cfg = load_config('retinanet_crossformer_demo')
    monkeypatch.setattr(config_options, 'find_spec', lambda package: None)
    with pytest.raises(ConfigError, match=f'--{name} needs the package {name}: pip install {name}'):
        use_tracker(cfg, name)
    monkeypatch.setattr(config_options, 'find_spec', lambda package: True)
    use_tracker(cfg, name)
    use_tracker(cfg, name)
    assert [entry['type'] for entry in cfg.visualizer.vis_backends] == ['LocalVisBackend', backend]
    bare = Config(dict())
    use_tracker(bare, name)
    assert bare.visualizer.vis_backends[-1].type == backend
