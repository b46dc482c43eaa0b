"""``segpt`` of the documentation: asks the process that answers to run it (``documented.py``)."""

import json
import os
import socket
import sys


def main() -> int:
    """Send the words, place, environment and streams of this process; the command's exit code."""
    request = {"words": sys.argv[1:], "place": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109 - pathlib takes a moment to load
    data = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["SEGPT_DOCUMENTED"] + "/socket")
        socket.send_fds(server, [len(data).to_bytes(4, "little")], [0, 1, 2])
        server.sendall(data)
        answer = server.recv(1)
    return answer[0] if answer else 70  # where the server's fork died, it has said why


if __name__ == "__main__":
    sys.exit(main())
