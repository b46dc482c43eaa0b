"""Scoring: windows, surprisal, the byte ledger and test-time training."""
