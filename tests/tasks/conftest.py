"""The fixtures of scoring serve here too."""

from tests.eval.conftest import able, combination, ledger, stream, tallied, tiny

__all__ = ["able", "combination", "ledger", "stream", "tallied", "tiny"]
