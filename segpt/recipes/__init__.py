"""Named recipes shipped with the package."""
