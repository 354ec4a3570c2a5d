"""Configs, and the cost of a model."""
