"""Run inside the examined interpreter, any Python 3: import modules and print what it found.

One line of JSON for the interpreter, then one per module as soon as it is known: a module may kill
the process.
"""
import importlib.util
import json
import os
import re
import subprocess
import sys
import traceback


def examine(name):
    """Import a module, or call the function that `name` ends with, and describe it."""
    if name == 'torch.from_numpy':
        import numpy
        import torch
        torch.from_numpy(numpy.zeros(1))
        return {}
    if name == 'mmengine.is_installed':  # the first of what `mmdet::` in a config calls
        from mmengine.utils import is_installed
        is_installed('mmengine')
        return {}
    module = importlib.import_module(name)
    facts = {'version': str(getattr(module, '__version__', '')),
             'path': getattr(module, '__file__', None) or ''}
    if name == 'torch':
        facts['cuda'] = module.version.cuda
        if module.cuda.is_available():
            facts.update(gpu=module.cuda.get_device_name(0), nvcc=nvcc_version())
    elif name in ('torchvision', 'mmcv.ops'):  # both may import although their ops do not work
        import torch
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        ops = module if name == 'mmcv.ops' else module.ops
        ops.nms(torch.zeros(1, 4, device=device), torch.zeros(1, device=device), 0.5)
        if name == 'mmcv.ops':
            facts['cuda'] = module.get_compiling_cuda_version()
    return facts


def nvcc_version():
    """Return the version of the CUDA compiler that torch would build with, '' without one."""
    try:
        from torch.utils.cpp_extension import CUDA_HOME
        output = subprocess.check_output([os.path.join(CUDA_HOME or '', 'bin', 'nvcc'), '--version'])
    except (ImportError, OSError, subprocess.CalledProcessError):  # setuptools or nvcc is missing
        return ''
    return re.search(r'release ([\d.]+)', output.decode()).group(1)


def describe_error(name, error):
    """Return the message, and the last line of the module's own package that the error passed."""
    record = {'error': '{}: {}'.format(type(error).__name__, error)}
    spec = importlib.util.find_spec(name) if '.' not in name else None
    folder = os.path.dirname(spec.origin or '') if spec else ''
    for frame in traceback.extract_tb(error.__traceback__):
        if folder and frame[0].startswith(folder):
            record['own'] = '{}:{}'.format(frame[0], frame[1])
    return record


def main(names):
    from importlib.metadata import distributions
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    records = {'python': list(sys.version_info[:3]),
               'distributions': {one.metadata['Name'] or '': one.version for one in distributions()}}
    print('\n@probe ' + json.dumps(records), flush=True)
    for name in names:
        try:
            record = examine(name)
        except (Exception, SystemExit) as error:  # whatever a broken package raises
            record = describe_error(name, error)
        print('\n@probe ' + json.dumps(record), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
