"""Optimizers, a file each, and the groups of weights that they update.

A rule of the recipe (``segpt.config.optimizer``) says how weights of a role or place are updated;
``registry`` names the optimizer that carries it out. Nothing reads a weight's name.
"""

from .groups import Group, Optimizers
from .registry import remembered

__all__ = ["Group", "Optimizers", "remembered"]
