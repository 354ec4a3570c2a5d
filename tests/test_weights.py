"""Released weights by name: the catalogue, and downloads from a server that plays their hosts."""
import hashlib
import io
import sys
from pathlib import Path

import pytest
import torch
import yaml
from local_hosts import Hosts, hosts
from mmengine.config import Config

from xvit_mm.checkpoints import (CheckpointError, catalogue, official_classifier, official_model,
                                 read_checkpoint)
from xvit_mm.checkpoints.catalogue import Released
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import load_config
from xvit_mm.utils.config_options import use_checkpoint, use_pretrained

MODULE = sys.modules[Released.__module__]
ROOT = Path(__file__).parents[1]
DIRECT = Released('direct', url='unused')
ON_DRIVE = Released('on_drive', drive='1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq')
BY_HAND = Released('by_hand', share='https://pan.baidu.com/s/1smc', key='crsf')


def checkpoint_bytes(seed: int = 0, size: int = 50_000) -> bytes:
    file = io.BytesIO()
    torch.manual_seed(seed)
    torch.save({'weight': torch.randn(size)}, file)
    return file.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def server(cache, monkeypatch):
    """Both hosts, and a catalogue with a file on each; no other connection is possible."""
    with hosts() as state:
        known = [Released('direct', url=state.url('direct.pth')),
                 Released('moved', url=state.url('redirect/direct.pth')), ON_DRIVE, BY_HAND]
        monkeypatch.setattr(MODULE, 'catalogue', lambda: {r.name: r for r in known})
        state.files['direct.pth'] = state.files[ON_DRIVE.drive] = checkpoint_bytes()
        yield state


@pytest.fixture
def drive(server, monkeypatch) -> Hosts:
    """The server also in the place of Google's."""
    pytest.importorskip('gdown', reason='pip install gdown')
    import requests
    send = requests.adapters.HTTPAdapter.send

    def send_here(self, request, **kwargs):
        for host in 'https://drive.google.com', 'https://drive.usercontent.google.com':
            request.url = request.url.replace(host, server.url('').rstrip('/'))
        assert request.url.startswith('http://127.0.0.1:'), request.url
        return send(self, request, **{**kwargs, 'proxies': {}})

    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send_here)
    return server


def weight(address: str) -> torch.Tensor:
    return read_checkpoint(address)['weight']


def assert_complete(address: str, cache: Path) -> None:
    assert torch.equal(weight(address), torch.load(io.BytesIO(checkpoint_bytes()))['weight'])
    assert not list(cache.glob('*part*'))


@pytest.mark.parametrize('name', ['direct', 'moved'])
def test_a_direct_file_is_fetched_once_also_where_it_has_moved(name, server, cache):
    assert_complete(f'official://{name}', cache)
    assert_complete(f'official://{name}', cache)
    assert server.requests == [('direct.pth', '')]
    content = (cache / f'{name}.pth').read_bytes()
    assert (cache / f'{name}.pth.sha256').read_text() == \
        f'{hashlib.sha256(content).hexdigest()}  {name}.pth\n'


def test_a_connection_that_is_cut_is_resumed(server, cache):
    server.cut_after = [60_000]
    assert_complete('official://direct', cache)
    assert server.requests[1:] == [('direct.pth', ''), ('direct.pth', 'bytes=60000-')]


def test_a_download_that_was_interrupted_is_resumed_by_the_next_run(server, cache):
    server.cut_after = [60_000] * 5  # three attempts; two of them first look what there is
    with pytest.raises(CheckpointError, match='cut after .* bytes. Run the command again to go on'):
        weight('official://direct')
    assert not (cache / 'direct.pth').exists() and list(cache.glob('direct.pth.*.part'))
    server.requests.clear()
    server.cut_after.clear()
    assert_complete('official://direct', cache)
    assert server.requests == [('direct.pth', ''), ('direct.pth', 'bytes=180000-')]


def test_a_download_starts_again_where_the_file_or_the_host_does_not_allow_more(server, cache):
    server.cut_after = [60_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError):
        weight('official://direct')
    server.cut_after.clear()
    server.resumable = False
    assert_complete('official://direct', cache)
    (cache / 'direct.pth').unlink()
    (cache / 'direct.pth.sha256').unlink()
    server.resumable, server.cut_after = True, [60_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError):
        weight('official://direct')
    server.cut_after.clear()
    server.files['direct.pth'] = checkpoint_bytes(seed=1)
    assert torch.equal(weight('official://direct'),
                       torch.load(io.BytesIO(checkpoint_bytes(seed=1)))['weight'])


def test_another_file_than_the_first_one_is_refused(server, cache):
    weight('official://direct')
    server.files['direct.pth'] = checkpoint_bytes(seed=1)
    (cache / 'direct.pth').unlink()
    with pytest.raises(CheckpointError, match=r'SHA-256 is \w{64}, and .*sha256 says \w{64}'):
        weight('official://direct')
    (cache / 'direct.pth.sha256').unlink()
    weight('official://direct')


def test_a_damaged_file_in_the_cache_is_refused(server, cache):
    weight('official://direct')
    with (cache / 'direct.pth').open('r+b') as file:
        file.seek(1000)
        file.write(b'x')
    with pytest.raises(CheckpointError, match='is not the file that is expected'):
        weight('official://direct')


def test_a_hash_of_the_catalogue_is_compared_at_the_first_download(server, cache):
    wrong = Released('direct', url=server.url('direct.pth'), sha256='0' * 64)
    with pytest.raises(CheckpointError, match='the catalogue says 0{64}'):
        wrong.fetch()


def test_a_page_instead_of_a_file_is_refused_and_not_recorded(server, cache):
    server.files['direct.pth'] = b'<!DOCTYPE html><html>Sign in to this network</html>'
    with pytest.raises(CheckpointError, match='is not a checkpoint but probably a page'):
        weight('official://direct')
    assert not (cache / 'direct.pth.sha256').exists()


def test_a_missing_file_and_a_missing_network_are_named(server, cache):
    server.files.clear()
    with pytest.raises(CheckpointError, match=r'direct.pth cannot be downloaded: .*404'):
        weight('official://direct')
    nowhere = Released('nowhere', url='http://127.0.0.1:9/x.pth')
    with pytest.raises(CheckpointError, match='127.0.0.1:9/x.pth cannot be downloaded.*put it at'):
        nowhere.fetch()
    assert not list(cache.glob('*.pth')) and not list(cache.glob('*.part'))


def test_drive_is_confirmed_and_fetched_once(drive, cache):
    assert_complete('official://on_drive', cache)
    assert_complete('official://on_drive', cache)
    assert drive.requests == [(ON_DRIVE.drive, '')]
    assert (cache / 'on_drive.pth.sha256').is_file()


def test_drive_cut_is_said_and_resumed_by_the_next_run(drive, cache):
    drive.files[ON_DRIVE.drive] = content = checkpoint_bytes(size=400_000)
    half = 1 << 20  # gdown writes whole pieces of 512 KiB
    drive.cut_after = [half]
    with pytest.raises(CheckpointError, match='Google Drive does not give on_drive.pth'):
        weight('official://on_drive')
    assert not (cache / 'on_drive.pth').exists()
    weight('official://on_drive')
    assert (cache / 'on_drive.pth').read_bytes() == content
    assert drive.requests[-1] == (ON_DRIVE.drive, f'bytes={half}-')


def test_drive_that_refuses_says_why_and_what_to_do(drive, cache):
    drive.quota = True
    with pytest.raises(CheckpointError, match=r'Too many users.*drive.google.com/file/d/1YSk.*/view'
                                              r' in a browser and put the file at .*on_drive.pth'):
        weight('official://on_drive')


def test_drive_without_gdown_says_how_to_install_it(server, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(CheckpointError, match='pip install gdown. Without it, open https://drive'):
        weight('official://on_drive')


def test_a_file_for_a_person_to_fetch_says_where_it_is_and_where_it_goes(server, cache):
    with pytest.raises(CheckpointError, match=r'pan.baidu.com/s/1smc \(key crsf\) and put the file '
                                              r'at .*/by_hand.pth'):
        weight('official://by_hand')
    cache.mkdir(parents=True)
    (cache / 'by_hand.pth').write_bytes(checkpoint_bytes())
    assert_complete('official://by_hand', cache)


def test_a_name_that_is_nearly_right_is_answered_with_those_that_exist():
    with pytest.raises(CheckpointError, match='crossformer-s is not.*did you mean crossformer_s'):
        read_checkpoint('official://crossformer-s')


# The catalogue itself.


def test_the_catalogue_has_every_released_file():
    by_host = {host: [r for r in catalogue().values() if getattr(r, host)]
               for host in ('url', 'drive', 'share')}
    assert {host: len(files) for host, files in by_host.items()} == dict(url=11, drive=14, share=4)
    assert len({r.url or r.drive or r.name for r in catalogue().values()}) == 29
    assert all(bool(r.url) + bool(r.drive) + bool(r.share) == 1 and bool(r.share) == bool(r.key)
               and bool(r.backbone) != bool(r.config) and r.paper for r in catalogue().values())


def test_every_classifier_of_the_catalogue_is_found_by_its_backbone():
    for released in catalogue().values():
        if released.backbone:
            variants = MODELS.get(f'xvit_mm.{released.backbone}').variants
            assert released.arch in variants
            backbone = dict(type=f'xvit_mm.{released.backbone}', arch=released.arch)
            assert official_classifier(backbone) == released.address


def test_every_model_of_the_catalogue_is_found_by_its_config():
    results = yaml.safe_load((ROOT / 'configs/results.yml').read_text(encoding='utf-8'))['configs']
    for released in catalogue().values():
        if released.config:
            assert official_model(load_config(released.config)) == released.address
            paper = results[released.config]['paper']
            assert {name: paper.get(name) for name in released.paper} == released.paper


def test_official_stands_for_the_weights_that_belong_to_a_config():
    cfg = load_config('crossvit_15_dagger_384_imagenet')
    use_checkpoint(cfg, 'official')
    assert (cfg.load_from, cfg.resume) == ('official://crossvit_15_dagger_384', False)
    use_pretrained(cfg, 'official')
    assert cfg.model.backbone.init_cfg.checkpoint == 'official://crossvit_15_dagger_384'
    detector = load_config('retinanet_crossformer_s_coco')
    use_pretrained(detector, 'official')
    assert detector.model.backbone.init_cfg.checkpoint == 'official://crossformer_s'
    vt = load_config('retinanet_vt_r50_coco')
    use_pretrained(vt, 'official')
    assert vt.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    for settings, name in ((dict(), 18), (dict(arch='r34'), 34), (dict(depth=101), 101),
                           (dict(arch='r18', depth=50), 50)):
        vt.model.backbone = dict(type='xvit_mm.VTResNet', **settings)
        use_pretrained(vt, 'official')
        assert vt.model.backbone.init_cfg.checkpoint == f'torchvision://resnet{name}'
    vt.model.backbone = dict(type='xvit_mm.VTResNet', arch=dict(num_modules=1))
    with pytest.raises(CheckpointError, match='has those of r18, r34, r50 and r101'):
        use_pretrained(vt, 'official')
    default = Config(dict(model=dict(backbone=dict(type='xvit_mm.CrossFormer'))))
    use_pretrained(default, 'official')
    assert default.model.backbone.init_cfg.checkpoint == 'official://crossformer_s'


@pytest.mark.parametrize('name, message', [
    ('retinanet_crossformer_t_coco', "whole model 'retinanet_crossformer_t_coco' are released; "
                                     'there are those of retinanet_crossformer_s_coco'),
    ('vt_r18_imagenet', "whole model 'vt_r18_imagenet'"),
    ('xformer_imagenet', 'no weights of XFormer are released'),
])
def test_official_without_released_weights_is_refused(name, message):
    with pytest.raises(CheckpointError, match=message):
        use_checkpoint(load_config(name), 'official')
