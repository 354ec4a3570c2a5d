"""Reading files from strangers: what training writes comes back, and nothing is ever called."""
import argparse
import codecs
import contextlib
import copyreg
import enum
import functools
import io
import os
import pickle
import random
import tarfile
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from numpy.testing._private.utils import runstring

from xvit_mm.checkpoints import CheckpointError, read_checkpoint

FORMATS = pytest.mark.parametrize('in_zip_format', [True, False], ids=['zip', 'legacy'])


def write(path: Path, pickled: bytes, in_zip_format: bool) -> Path:
    """A file in one of torch's formats whose object is this pickle."""
    if in_zip_format:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', pickled)
            archive.writestr('archive/version', '3\n')
    else:
        empty = io.BytesIO()
        torch.save({}, empty, _use_new_zipfile_serialization=False)
        head, _, tail = empty.getvalue().rpartition(pickle.dumps({}, protocol=2))
        path.write_bytes(head + pickled + tail)
    return path


# Hostile files. Each payload makes a folder, TARGET, if it is unpickled by the standard library.


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('XVIT_MM_TEST_TARGET', str(tmp_path / 'made'))
    return tmp_path / 'made'


def target() -> str:
    return os.environ['XVIT_MM_TEST_TARGET']


def make_target(*_) -> int:
    os.mkdir(target())
    return 0


class Call:
    """Is pickled as a call of a function; also as what such a call returns."""

    def __init__(self, function, *arguments) -> None:
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced

    def __call__(self) -> None:
        """Let pickle take it for a function."""


class MadeByNew:

    def __new__(cls, *_):
        make_target()
        return super().__new__(cls)


class MadeBySetState:
    __setstate__ = make_target


class MadeByItems:
    append = add = __setitem__ = make_target


class MadeByHash:
    __hash__ = make_target


class InState(Call):
    """Is pickled as the result of a call with a state that is given to it."""

    def __init__(self, function, *arguments, state) -> None:
        self.reduced = function, arguments, state


def pickled(make, protocol: int = 2):
    return lambda: pickle.dumps(make(), protocol=protocol)


def opcodes(code: str):
    return lambda: code.replace('TARGET', target()).encode('latin1')


def mkdir() -> Call:
    return Call(os.mkdir, target())


def by_extension() -> bytes:
    copyreg.add_extension('posix', 'mkdir', 240)
    return pickled(mkdir)()


PAYLOADS = {
    'call': pickled(mkdir),
    'in containers': pickled(lambda: {'model': [{'a': (1, [mkdir()])}]}),
    'key': pickled(lambda: {mkdir(): 1}),
    'argument': pickled(lambda: Call(Counter, mkdir())),
    'state': pickled(lambda: InState(OrderedDict, state={'_metadata': mkdir()})),
    'eval': pickled(lambda: Call(eval, f'__import__("os").mkdir({target()!r})')),
    'exec': pickled(lambda: Call(exec, f'import os; os.mkdir({target()!r})')),
    'import': pickled(
        lambda: Call(Call(getattr, Call(__import__, 'os'), 'mkdir'), target())),
    'method': pickled(lambda: Call(Path.mkdir, Path(target()))),
    'map': pickled(lambda: Call(list, Call(map, os.mkdir, [target()]))),
    'partial': pickled(lambda: Call(Call(functools.partial, os.mkdir, target()))),
    'pickle in a pickle': pickled(lambda: Call(pickle.loads, pickle.dumps(mkdir()))),
    'numpy writes': pickled(lambda: Call(np.savetxt, target(), [1])),
    'numpy runs': pickled(lambda: Call(runstring, f'import os; os.mkdir({target()!r})', {})),
    'tensor': pickled(lambda: Call(
        torch._tensor._rebuild_from_type_v2, os.mkdir, type(None), (target(),), {})),
    'encoding': pickled(lambda: Call(codecs.encode, 'a', 'xvit_mm_hostile')),
    'new': opcodes('ctest_unpickling\nMadeByNew\n)\x81.'),
    'new with names': pickled(lambda: Call(copyreg.__newobj_ex__, MadeByNew, (), {}), protocol=4),
    'setstate': opcodes('ctest_unpickling\nMadeBySetState\n)\x81K\x01b.'),
    'append': opcodes('ctest_unpickling\nMadeByItems\n)\x81K\x01a.'),
    'set item': opcodes('ctest_unpickling\nMadeByItems\n)\x81K\x01K\x02s.'),
    'add': opcodes('ctest_unpickling\nMadeByItems\n)\x81(K\x01\x90.'),
    'hash': opcodes('}ctest_unpickling\nMadeByHash\n)\x81K\x01s.'),
    'INST': opcodes('(VTARGET\niposix\nmkdir\n.'),
    'OBJ': opcodes('(cposix\nmkdir\nVTARGET\no.'),
    'STACK_GLOBAL': pickled(mkdir, protocol=4),
    'extension': by_extension,
    'dotted name': opcodes(
        '\x80\x04\x8c\x1bxvit_mm.checkpoints.reading\x8c\x08os.mkdir\x93(VTARGET\ntR.'),
    'name of Python 2': opcodes('ccommands\ngetoutput\n(Vmkdir TARGET\ntR.'),
}


@pytest.fixture(params=PAYLOADS)
def payload(request):
    """A hostile pickle, while what it refers to is registered."""
    def search(name):
        return name == 'xvit_mm_hostile' and make_target()
    codecs.register(search)
    try:
        yield PAYLOADS[request.param]()
    finally:
        codecs.unregister(search)
        if ('posix', 'mkdir') in copyreg._extension_registry:
            copyreg.remove_extension('posix', 'mkdir', 240)


def test_the_payloads_are_live(payload, made):
    # Some fail after the call, for instance for its result.
    with contextlib.suppress(Exception):
        pickle.loads(payload)
    assert made.exists()


@FORMATS
def test_nothing_in_a_file_is_called(payload, in_zip_format, tmp_path, made):
    path = write(tmp_path / 'file.pth', payload, in_zip_format)
    try:
        repr(read_checkpoint(path))
    except CheckpointError as error:
        assert 'file.pth' in str(error)
    assert not made.exists()


@FORMATS
@pytest.mark.parametrize('owner', ['collections.OrderedDict', 'torch.Size', 'torch.float32',
                                   'mmengine.logging.history_buffer.HistoryBuffer',
                                   'torch._utils._rebuild_tensor_v2', 'some.Class'])
def test_classes_and_functions_cannot_be_changed(owner, in_zip_format, tmp_path):
    module, _, name = owner.rpartition('.')
    state = '}(Vmean\nK\x07u'
    code = f'c{module}\n{name}\nN{state}\x86b.'
    with pytest.raises(CheckpointError, match='sets the state of a'):
        read_checkpoint(write(tmp_path / 'file.pth', code.encode('latin1'), in_zip_format))
    assert callable(HistoryBuffer.mean)


def test_the_statistics_of_all_histories_stay_as_they_are(tmp_path):
    history = HistoryBuffer([1.], [1])
    before = dict(HistoryBuffer._statistics_methods)
    history._statistics_methods = {'mean': make_target, 'other': make_target}
    torch.save({'history': history}, tmp_path / 'file.pth')
    history = read_checkpoint(tmp_path / 'file.pth')['history']
    assert HistoryBuffer._statistics_methods == before and history.statistics('mean') == 1


POINTERS = (3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 63)


@pytest.mark.parametrize('code, state', [
    ('O', None), ('V8', None), ('V8', POINTERS), ('f8', (3, 'x', None, None, None, -1, -1, 63))])
def test_arrays_of_pointers_are_refused(code, state, tmp_path):
    kind = Call(np.dtype, code, False, True)
    kind = kind if state is None else InState(*kind.reduced[:1], *kind.reduced[1], state=state)
    rebuild = np.zeros(1).__reduce__()[0]
    array = InState(rebuild, np.ndarray, (0,), b'b', state=(1, (1,), kind, False, b'\1' * 8))
    torch.save({'array': array}, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='it has (values of the type|a type of)'):
        read_checkpoint(tmp_path / 'file.pth')


def test_flags_of_a_type_are_not_taken_from_the_file(tmp_path):
    kind = InState(np.dtype, 'f8', False, True, state=(3, '>', None, None, None, -1, -1, 63))
    torch.save({'type': kind}, tmp_path / 'file.pth')
    dtype = read_checkpoint(tmp_path / 'file.pth')['type']
    assert dtype == np.dtype('>f8') and dtype.flags == np.dtype('>f8').flags


def test_a_tensor_larger_than_its_record_is_refused(tmp_path):
    torch.save({'a': torch.ones(4)}, tmp_path / 'whole.pth')
    many = b'J' + (1 << 22).to_bytes(4, 'little')
    with zipfile.ZipFile(tmp_path / 'whole.pth') as source, \
            zipfile.ZipFile(tmp_path / 'file.pth', 'w') as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                assert content.count(b'K\x04') == 2
                content = content.replace(b'K\x04', many)
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match='its tensor 0 has fewer values than it says'):
        read_checkpoint(tmp_path / 'file.pth')


def test_programs_and_archives_are_refused(tmp_path):
    class Program(torch.nn.Module):

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Program()).save(tmp_path / 'program.pth')
    with pytest.raises(CheckpointError, match='program.pth cannot be read: it is a TorchScript'):
        read_checkpoint(tmp_path / 'program.pth')
    with tarfile.open(tmp_path / 'archive.pth', 'w') as archive:
        archive.add(tmp_path / 'program.pth', 'storages')
    with pytest.raises(CheckpointError, match='it is an archive of torch before 0.2'):
        read_checkpoint(tmp_path / 'archive.pth')


# Harmless files.


class Color(enum.Enum):
    RED = 1


class OwnList(list):
    pass


class OwnDict(dict):
    pass


@FORMATS
def test_foreign_objects_become_placeholders(in_zip_format, tmp_path):
    foreign = {'args': argparse.Namespace(a=1), 'list': OwnList([1, 2]), 'kind': Color.RED,
               'path': Path('a/b'), Color.RED: 1, 'call': functools.partial(max, 1),
               'class': argparse.Namespace, 'function': make_target,
               'namespace': types.SimpleNamespace(a=1), 'dict': OwnDict(a=torch.ones(2))}
    torch.save(foreign | {'model': {'a': torch.ones(1)}}, tmp_path / 'file.pth',
               _use_new_zipfile_serialization=in_zip_format)
    content = read_checkpoint(tmp_path / 'file.pth')
    assert len(content) == len(foreign) + 1 and content['model'] == {'a': 1}
    assert torch.equal(content['dict']['a'], torch.ones(2))
    assert content['args'] is not content['namespace'] and len(content['list']) == 0
    # They can be saved again, and are plain then.
    assert pickle.loads(pickle.dumps(content['dict'])).keys() == {'a'}


def same(a, b) -> bool:
    if isinstance(a, (torch.Tensor, np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and (
            bool((a == b).all()))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


VALUES = {
    'plain': [1, 2.5, None, True, 'ä', b'\0\xff', b'', (1,), {3}, frozenset((4,)), 1 + 2j,
              bytearray(b'\0\xe9'), slice(1, 2), 10 ** 30, -1, float('inf')],
    'containers': [OrderedDict(a=1), Counter('aab'), deque([1, 2]), defaultdict(int, a=1)],
    'numbers': [np.float64(0.5), np.int64(3), np.bool_(True), np.float32(1.5), np.uint8(7)],
    'arrays': [np.arange(6.).reshape(2, 3).T, np.arange(3, dtype='>i4'), np.array(['a', 'bc']),
               np.array(2.), np.zeros((0, 3), np.float16), np.array([b'ab']), np.array([1j]),
               np.ones((2, 2), bool)[:, ::-1]],
    'tensors': [torch.arange(6.).reshape(2, 3).t(), torch.tensor(3), torch.ones(0, 2),
                *(torch.ones(2).to(kind) for kind in (
                    torch.half, torch.bfloat16, torch.bool, torch.uint8, torch.cfloat))],
    'of torch': [torch.Size((1, 2)), torch.float32, torch.device('cpu'), torch.strided],
    'random states': [np.random.RandomState(0).get_state(), torch.get_rng_state(),
                      random.Random(0).getstate()],
}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('kind', VALUES)
@FORMATS
def test_what_training_writes_comes_back(kind, protocol, in_zip_format, tmp_path):
    content = {str(number): value for number, value in enumerate(VALUES[kind])}
    torch.save(content, tmp_path / 'file.pth', pickle_protocol=protocol,
               _use_new_zipfile_serialization=in_zip_format)
    read = read_checkpoint(tmp_path / 'file.pth')
    # numpy makes the byte order that of the machine.
    expected = pickle.loads(pickle.dumps(content, protocol))
    different = [key for key in content if not same(expected[key], read[key])]
    assert not different, [(expected[key], read[key]) for key in different]


def test_special_tensors_come_back_as_such(tmp_path):
    with_attribute = torch.ones(2)
    with_attribute.note = 1
    content = {
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'with attribute': with_attribute,
        'sparse': torch.eye(3).to_sparse(),
        'quantized': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        'meta': torch.ones(2, device='meta')}
    shared = torch.ones(4)
    torch.save(content | {'whole': shared, 'part': shared[1:]}, tmp_path / 'file.pth')
    read = read_checkpoint(tmp_path / 'file.pth')
    assert isinstance(read['parameter'], torch.nn.Parameter)
    assert torch.equal(read['with attribute'], torch.ones(2))
    assert read['sparse'].is_sparse and torch.equal(read['sparse'].to_dense(), torch.eye(3))
    assert read['quantized'].is_quantized and read['meta'].is_meta
    assert read['whole'].data_ptr() + 4 == read['part'].data_ptr()


def test_a_setting_that_forbids_reading_is_named(tmp_path, monkeypatch):
    torch.save({'a': torch.ones(1)}, tmp_path / 'file.pth')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(CheckpointError, match='while TORCH_FORCE_WEIGHTS_ONLY_LOAD is set'):
        read_checkpoint(tmp_path / 'file.pth')
