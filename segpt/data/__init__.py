"""Text to tokens: documents, tokenizers, shards and batches, without torch."""
