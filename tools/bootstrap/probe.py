"""Run inside the examined interpreter, any Python 3: import modules and print what it found.

One line of JSON for the interpreter, then one per module as soon as it is known: a module may kill
the process.
"""
import importlib
import importlib.util
import json
import os
import sys
import traceback


def _facts(name):
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
    if name == 'torchvision':  # beside a slightly newer torch it imports, without its ops
        import torch
        module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    facts = {'version': str(getattr(module, '__version__', '')),
             'path': getattr(module, '__file__', None) or ''}
    if name == 'torch':
        facts['cuda'] = module.version.cuda
        facts['gpu'] = module.cuda.get_device_name(0) if module.cuda.is_available() else None
    if name == 'mmcv.ops':
        facts['cuda'] = module.get_compiling_cuda_version()
    return facts


def _lines_of(name, error):
    """The lines of a package through which an error came."""
    try:
        folder = os.path.dirname(importlib.util.find_spec(name.split('.')[0]).origin)
    except (AttributeError, TypeError, ValueError):
        return []
    return ['{}:{}'.format(frame[0], frame[1])
            for frame in traceback.extract_tb(error.__traceback__) if frame[0].startswith(folder)]


def _probe(name):
    try:
        return _facts(name)
    except (Exception, SystemExit) as error:  # whatever a broken package raises
        return {'error': '{}: {}'.format(type(error).__name__, error),
                'own': _lines_of(name, error)}


def main(names):
    from importlib.metadata import distributions
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    head = {'python': list(sys.version_info[:3]),
            'distributions': {one.metadata['Name'] or '': one.version for one in distributions()}}
    print('\n@probe ' + json.dumps(head), flush=True)
    for name in names:
        print('\n@probe ' + json.dumps(dict(_probe(name), name=name)), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
