"""Models of others, in and out: Hugging Face directories and GGUF files."""
