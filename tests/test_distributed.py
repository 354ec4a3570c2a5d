"""Training in two processes with DDP: no parameter is unused, and what is frozen stays."""
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_models import SMALL
from torch.nn.parallel import DistributedDataParallel

from xvit_mm.registry import MODELS


def train_two_steps(rank: int, name: str, settings: dict, folder: str) -> None:
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **settings)).train()
    initial = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    model = DistributedDataParallel(backbone)  # would fail at step 2 if a parameter were unused
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(rank)
    for _ in range(2):
        optimizer.zero_grad()
        # Other images and another size on each rank.
        maps = model(torch.randn(2, 3, 40 + 24 * rank, 56))
        sum(x.square().mean() for x in maps).backward()
        optimizer.step()
    trained = {n: p.detach() for n, p in backbone.named_parameters()}
    learning = [n for n, p in backbone.named_parameters() if p.grad is not None]
    torch.save((initial, trained, learning), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('settings', [
    dict(frozen_stages=1, with_cp=True),
    dict(out_indices=(1, 2)),
], ids=['frozen and checkpointed', 'two outputs'])
def test_two_processes_train_all_weights_but_the_frozen_ones(name, settings, tmp_path):
    mp.start_processes(train_two_steps, (name, settings, str(tmp_path)), nprocs=2,
                       start_method='spawn')
    fresh = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **settings))
    frozen = {n for n, p in fresh.named_parameters() if not p.requires_grad}
    assert bool(frozen) == ('frozen_stages' in settings)
    for rank in (0, 1):
        initial, trained, learning = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert set(learning) == set(initial) - frozen
        changed = {n for n in initial if not torch.equal(initial[n], trained[n])}
        assert changed and not changed & frozen
