"""Parts of the set-up that environment.py, doctor.py, quickstart.py and selftest.py share.

Standard library only, and no syntax that an old Python 3 cannot read: such a Python has to get as
far as the message that names the supported ones.
"""
