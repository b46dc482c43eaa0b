"""The page of a run: its curves, its bytes and its scores."""
