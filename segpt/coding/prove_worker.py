"""The decoder's side of a proof, as a process: ``python -m segpt.coding.prove_worker``.

It is given an artifact, a compressed file and where to write the text. On stdout it says in JSON
lines how far it is and, at the end, how long each document is.
"""

import json
import sys
from pathlib import Path
from typing import Any

from segpt.errors import SegptError
from segpt.stages.pack import read_artifact

from .compress import decompress


def main(artifact: str, message: str, out: str) -> None:
    """Decompress the file ``message`` with ``artifact`` to ``out``, all documents on end."""
    try:
        documents = decompress(
            read_artifact(Path(artifact)),
            Path(message).read_bytes(),
            report=lambda done, total: _say(done=done, total=total),
        )
    except SegptError as error:
        sys.exit(str(error))
    Path(out).write_bytes(b"".join(documents))
    _say(documents=[len(document) for document in documents])


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
