"""What of this machine works, what is missing, and what to do about it."""
