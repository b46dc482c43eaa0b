"""Modules built from a spec: parameters, parts, layers and visits."""
