"""What lies in the user's directory: what was made last, and which text is whose."""
