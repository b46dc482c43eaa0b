"""Named operations: a reference in plain torch, and faster back ends beside it."""
