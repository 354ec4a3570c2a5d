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

MARK = '@probe '


def _extra_facts(name, module):
    """Facts that only the imported module knows."""
    if name == 'torch':
        gpu = module.cuda.get_device_name(0) if module.cuda.is_available() else None
        return {'cuda': module.version.cuda, 'gpu': gpu}
    if name == 'mmcv.ops':
        return {'cuda': module.get_compiling_cuda_version()}
    return {}


def _call(name):
    """Import a module, or call the function that `name` ends with on an array."""
    if name == 'torch.from_numpy':
        import numpy
        import torch
        torch.from_numpy(numpy.zeros(1))
        return numpy
    return importlib.import_module(name)


def _folder(name):
    """Where a package lies, also one that does not import."""
    try:
        return os.path.dirname(importlib.util.find_spec(name.split('.')[0]).origin)
    except (AttributeError, TypeError, ValueError):
        return ''


def _probe(name):
    """What one import gave; whatever a broken package raises becomes text."""
    try:
        module = _call(name)
        record = {'name': name, 'version': str(getattr(module, '__version__', '')),
                  'path': getattr(module, '__file__', None) or ''}
        record.update(_extra_facts(name, module))
        return record
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(sys.exc_info()[2])
        where = ['{}:{}'.format(frame[0], frame[1]) for frame in frames]
        return {'name': name, 'error': '{}: {}'.format(type(error).__name__, error),
                'own': [place for place in where if place.startswith(_folder(name) or '?')]}


def main(names):
    from importlib.metadata import distributions
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    head = {'python': list(sys.version_info[:3]),
            'distributions': {one.metadata['Name'] or '': one.version for one in distributions()}}
    print('\n' + MARK + json.dumps(head), flush=True)
    for name in names:
        print('\n' + MARK + json.dumps(_probe(name)), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
