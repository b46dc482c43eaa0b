"""Scores held against their conditions: on changed text, and in other processes."""
