"""A model as source that others run: plain torch and transformers, nothing of segpt."""
