"""Training in two processes, as DDP does it: no unused parameters, the same weights everywhere."""
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
    model = DistributedDataParallel(backbone)  # would fail at step 2 if a parameter were unused
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(rank)
    for _ in range(2):
        optimizer.zero_grad()
        # Other images and another size on each rank.
        maps = model(torch.randn(2, 3, 40 + 24 * rank, 56))
        sum(x.square().mean() for x in maps).backward()
        optimizer.step()
    torch.save({n: p.detach() for n, p in backbone.named_parameters()}, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('settings', [
    dict(frozen_stages=1, with_cp=True),
    dict(out_indices=(1, 2)),
], ids=['frozen and checkpointed', 'two outputs'])
def test_two_processes_train_the_same_weights(name, settings, tmp_path):
    mp.start_processes(train_two_steps, (name, settings, str(tmp_path)), nprocs=2,
                       start_method='spawn')
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[n], second[n]) for n in first)
    fresh = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **settings))
    frozen = {n for n, p in fresh.named_parameters() if not p.requires_grad}
    assert bool(frozen) == ('frozen_stages' in settings)
