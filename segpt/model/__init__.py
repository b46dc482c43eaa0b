"""Modules built from a spec: leaves, parts, layers and visits."""
