"""The page of the server: its text, its looks and its script."""
