"""Random numbers that depend on how far a run is, not on how it got there."""
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .data_errors import check_image


def random_state() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's generators as tensors and numbers.

    Of the GPUs only the current one is covered, which is the one that a process trains on.
    """
    version, python, python_gauss = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    state = dict(
        python=dict(version=version, keys=torch.tensor(python), gauss=python_gauss),
        numpy=dict(keys=torch.from_numpy(keys.astype(np.int64)), position=int(position),
                   has_gauss=int(has_gauss), gauss=float(gauss)),
        torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['keys'].tolist()), python['gauss']))
    np.random.set_state(('MT19937', numpy['keys'].cpu().numpy().astype(np.uint32),
                         numpy['position'], numpy['has_gauss'], numpy['gauss']))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Leave all generators of this process as they were before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def seed_all(*key: int) -> None:
    """Seed the generators of python, numpy and torch (CPU) from several non-negative numbers."""
    python, numpy, *halves = np.random.SeedSequence(key).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    # Not torch.manual_seed, which also reaches for the GPU, in a worker for each sample.
    torch.default_generator.manual_seed(halves[0] << 32 | halves[1])


class SeededIndex(int):
    """The index of a sample, with the key that its augmentation is seeded with."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> 'SeededIndex':
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __reduce__(self) -> tuple:
        return SeededIndex, (int(self), self.key)


class SeededDataset(Dataset):
    """A data set whose random transforms depend only on the key of a `SeededIndex`.

    An image that cannot be read is named. It passes for the data set that it wraps: all other
    attributes are that one's, for reading and for writing, as hooks that change a pipeline expect.
    """

    def __init__(self, dataset: Dataset) -> None:
        object.__setattr__(self, '_seeded_dataset', dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        # Once for a batch: it takes longer than the seeding. A worker has nothing to preserve.
        is_seeded = any(isinstance(index, SeededIndex) for index in indices)
        is_worker = get_worker_info() is not None
        with preserved_randomness() if is_seeded and not is_worker else nullcontext():
            return [self._load_seeded(index) for index in indices]

    def _load_seeded(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self._load(index)
        seed_all(*index.key)
        return self._load(int(index))

    def _load(self, index: int) -> Any:
        try:
            return self._seeded_dataset[index]
        except Exception as error:
            check_image(self._seeded_dataset, index, error)
            raise

    def __len__(self) -> int:
        return len(self._seeded_dataset)

    def __getattr__(self, name: str) -> Any:
        if name == '_seeded_dataset':  # asked for by pickle before it exists
            raise AttributeError(name)
        return getattr(self._seeded_dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._seeded_dataset, name, value)

    def __reduce__(self) -> tuple:
        return SeededDataset, (self._seeded_dataset, )

    @property
    def __class__(self) -> type:
        # For isinstance.
        return type(self._seeded_dataset)


class SeededBatches:
    """The batches of a batch sampler from any position on, with indices that carry their key.

    Args:
        batches: the batch sampler of a data loader.
        seed: enters the key of every sample, beside the epoch, the rank and the position.
    """

    def __init__(self, batches: Iterable[list[int]], seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.start = 0  # number of batches of this epoch that are left out

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        rewind(self.batches)
        with preserved_randomness():
            # torch's RandomSampler draws its order at the first step.
            seed_all(self.seed, self.epoch)
            batches = enumerate(self.batches)
            batch = next(batches, None)
        while batch is not None:
            position, indices = batch
            if position >= self.start:
                yield [SeededIndex(index, self._key(position, offset))
                       for offset, index in enumerate(indices)]
            batch = next(batches, None)

    def _key(self, position: int, offset: int) -> tuple[int, ...]:
        return self.seed, self.epoch, get_rank(), position, offset


def seed_samples(loader: DataLoader, seed: int) -> SeededBatches | None:
    """Have a loader's samples depend on seed, epoch and position, whatever number of workers.

    Returns the loader's batches, in which a start can be set; None for a loader without batches of
    indices, which is left alone.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    batches = SeededBatches(loader.batch_sampler, seed)
    wrap_dataset(loader)
    object.__setattr__(loader, 'batch_sampler', batches)
    stop_workers(loader)  # which hold the former data set
    return batches


def wrap_dataset(loader: DataLoader) -> None:
    """Have a loader read through a `SeededDataset`."""
    if type(loader.dataset) is not SeededDataset and not isinstance(
            loader.dataset, IterableDataset):
        # A loader refuses to have it set once it is made.
        object.__setattr__(loader, 'dataset', SeededDataset(loader.dataset))


def stop_workers(loader: DataLoader | None) -> None:
    """End the persistent workers of a loader; iterating over it again starts others."""
    iterator = getattr(loader, '_iterator', None)
    if hasattr(iterator, '_shutdown_workers'):
        iterator._shutdown_workers()
        loader._iterator = None


def index_sampler(batches: Any) -> Any:
    """Return what draws the single indices of a batch sampler, through any wrappers."""
    while hasattr(batches, 'batches') or hasattr(batches, 'sampler'):
        batches = batches.batches if hasattr(batches, 'batches') else batches.sampler
    return batches


def rewind(batches: Any) -> None:
    """Have mmengine's InfiniteSampler begin again, which otherwise goes on where it was."""
    sampler = index_sampler(batches)
    if hasattr(sampler, '_indices_of_rank') and isinstance(getattr(sampler, 'indices', None),
                                                           Iterator):
        sampler.indices = sampler._indices_of_rank()
