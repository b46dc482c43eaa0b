"""Submissions to a contest: made from artifacts, and checked against their own logs and files."""
