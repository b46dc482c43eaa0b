"""Questions to a model: CORE and the tasks of lm-evaluation-harness."""
