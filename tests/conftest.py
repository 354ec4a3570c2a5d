"""Settings of the test session."""
import sys
from pathlib import Path

import torch

# The helpers beside the tests: golden.py, small_models.py.
sys.path.insert(0, str(Path(__file__).parent))
# Test models are tiny: more threads only wait for one another.
torch.set_num_threads(1)
