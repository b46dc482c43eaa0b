"""A model that answers over HTTP, as OpenAI's interface has it, and a page to talk to it."""
