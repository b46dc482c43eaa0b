"""Text to a compressed file and back, by what a model predicts: the proof of a score."""
