"""The model zoo: its page, and the metafiles that `mim` reads, from the configs and results."""
from .cost import measure
from .entries import Entry, read_entries
from .metafiles import metafiles, read_costs
from .page import page
from .results import RESULTS, Measured, Published, read_results
from .writing import render, write_zoo

__all__ = ['RESULTS', 'Entry', 'Measured', 'Published', 'measure', 'metafiles', 'page',
           'read_costs', 'read_entries', 'read_results', 'render', 'write_zoo']
