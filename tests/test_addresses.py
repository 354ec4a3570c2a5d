"""Where checkpoints may be: paths, addresses, model zoos. Nothing here leaves the machine."""
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from xvit_mm.checkpoints import CheckpointError, addresses, read_checkpoint

WEIGHTS = {'weight': torch.arange(3.)}


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """A checkpoint; torch's cache and the home folder are empty ones."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(WEIGHTS, tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


@pytest.fixture
def downloads(saved, monkeypatch) -> list[str]:
    """The addresses that were downloaded; all hold the same checkpoint."""
    urls = []

    def download(url, target):
        if not target.is_file():
            urls.append(url)
            target.parent.mkdir(parents=True)
            shutil.copy(saved, target)

    monkeypatch.setattr(addresses, 'download', download)
    return urls


def assert_read(address: str) -> None:
    assert torch.equal(read_checkpoint(address)['weight'], WEIGHTS['weight'])


def test_home_folder_is_understood(saved):
    assert_read('~/weights.pth')


def test_web_address_is_downloaded_once(saved):
    requests = []

    class Server(BaseHTTPRequestHandler):

        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(saved.read_bytes())

        def log_message(self, *args):
            pass

    with HTTPServer(('127.0.0.1', 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/files/some.pth?download=1'
        assert_read(address)
        assert_read(address)
        server.shutdown()
    assert requests == ['/files/some.pth?download=1']
    assert (saved.parent / 'torch/hub/checkpoints/some.pth').is_file()


def test_addresses_that_end_in_one_name_have_files_of_their_own(saved, monkeypatch):
    def download(url, target):
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save({'weight': torch.tensor(len(url))}, target)

    monkeypatch.setattr(addresses, 'download', download)
    for _ in range(2):
        for url in ('https://one/epoch_12.pth', 'https://other/epoch_12.pth'):
            assert read_checkpoint(url)['weight'] == len(url)
    # A file that torch or the user put there has no record and counts for every address.
    shutil.copy(saved, saved.parent / 'torch/hub/checkpoints/own.pth')
    assert_read('https://host/own.pth')


@pytest.mark.parametrize('name, url', [
    ('torchvision://resnet50', 'https://download.pytorch.org/models/resnet50-'),
    ('torchvision://resnet50.imagenet1k_v2', 'https://download.pytorch.org/models/resnet50-'),
    ('open-mmlab://detectron2/resnet50_caffe', 'resnet50_msra'),
    ('openmmlab://resnet50_v1c', 'resnet50_v1c'),
    ('mmcls://resnet18', 'resnet18'),
])
def test_names_of_model_zoos_are_those_of_mmengine(name, url, downloads):
    assert_read(name)
    assert len(downloads) == 1 and downloads[0].startswith('https://') and url in downloads[0]


@pytest.mark.parametrize('address, message', [
    ('ftp://host/x.pth', r"'ftp://host/x.pth' cannot be reached .*Allowed is a path, .*zoo"),
    ('torchvision://zzz', 'torchvision://zzz is not in the model zoo. Allowed is'),
    ('open-mmlab://resnet51', 'open-mmlab://resnet51 is not in the model zoo; close to it are'),
    ('http://127.0.0.1:9/x.pth', 'http://127.0.0.1:9/x.pth cannot be downloaded.*give its path'),
])
def test_an_address_out_of_reach_is_refused_with_what_is_allowed(address, message, saved):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(address)


def test_other_processes_wait_for_the_download_of_the_first(saved, downloads, monkeypatch):
    monkeypatch.setattr(addresses, 'get_rank', lambda: 1)
    target = saved.parent / 'torch/hub/checkpoints/x.pth'

    def first_process_is_done():
        assert not downloads
        target.parent.mkdir(parents=True)
        shutil.copy(saved, target)

    monkeypatch.setattr(addresses, 'barrier', first_process_is_done)
    assert_read('https://host/x.pth')
    assert not downloads


def test_a_failed_download_lets_no_process_wait(saved, monkeypatch):
    waited = []
    monkeypatch.setattr(addresses, 'barrier', lambda: waited.append(True))
    with pytest.raises(CheckpointError):
        read_checkpoint('http://127.0.0.1:9/x.pth')
    assert waited
