"""What can go wrong, for the person at the terminal: every message names a place and a remedy."""

LONGEST = 2_000  # characters of a message


class SegptError(Exception):
    """Bad input. The command line prints the message as one line and exits with ``exit_code``."""

    exit_code = 2

    def __str__(self) -> str:
        """The message in one line that any terminal can show, without the middle of a long one."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """``text`` in one line of at most ``LONGEST`` characters, what does not print spelled out."""
    line = spelled(text.replace("\n", " "))
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} [...] {line[-half:]}"


def spelled(text: str) -> str:
    """``text`` with line breaks and other characters that do not print spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class SpecError(SegptError):
    """A recipe or header that cannot be read; the message names the offending path."""


class DataError(SegptError):
    """Text, tokenizer or token shards that are missing, damaged or unsuitable."""


class CheckpointError(SegptError):
    """A checkpoint or quantized model on disk that is missing or damaged."""


class ArtifactError(SegptError):
    """A packed file that is not a valid artifact of a known format."""


class MessageError(SegptError):
    """A compressed file that is damaged, or was not made by the artifact at hand."""


class ScoreError(SegptError):
    """A score that cannot be proved, and is therefore not printed."""


class TrainError(SegptError):
    """A training run that cannot go on; the last good checkpoint is kept."""


class CheckError(SegptError):
    """The input is sound, but a check on it failed: over budget, stale page, broken record."""

    exit_code = 1


class InterruptError(SegptError):
    """Stopped by a signal after saving."""

    exit_code = 130
