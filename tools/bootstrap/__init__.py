"""What environment.py, doctor.py, quickstart.py and selftest.py share. Standard library only.

The four import this package first. Like them, this file has to be readable by any Python 3.
"""
import sys

if sys.version_info < (3, 10):
    sys.exit('Python {}.{} ({}) is too old: the package needs 3.10 or later. Call the same program '
             'with a newer one, for example `python3.11 {}`.'.format(
                 sys.version_info[0], sys.version_info[1], sys.executable, ' '.join(sys.argv)))
