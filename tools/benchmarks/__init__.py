"""Parts of `tools/benchmark.py`: what is measured, how, and what is kept of it."""
