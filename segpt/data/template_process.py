"""The process in which chat templates run, as its owner sees it: bounded, and started anew."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from segpt.errors import DataError

SECONDS = 5.0  # for one conversation
LARGEST_TEMPLATE = 2**18  # bytes

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


class TemplateProcess:
    """A process that renders for whoever asks, one after the other; it is started when needed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def render(self, source: str, variables: Mapping[str, Json]) -> str:
        """What the Jinja template ``source`` writes.

        Raises:
            DataError: if it is no template, refuses the variables, or takes too long or too much.
        """
        if len(source) > LARGEST_TEMPLATE:
            raise DataError(f"a chat template of {len(source):,} characters is too long to be one")
        request = json.dumps({"source": source, "variables": variables})
        with self._lock:
            reply = self._ask(request)
        if "error" in reply:
            raise DataError(f"the chat template says: {reply['error']}")
        return str(reply["text"])

    def close(self) -> None:
        """End the process; the next template starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: str) -> dict[str, str]:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self.seconds)
        except queue.Empty:
            self._end()
            return {"error": f"nothing in {self.seconds:g} seconds, so it was ended"}
        except OSError:
            line = ""
        if not line:
            self._end()
            return {"error": "nothing, and its process ended"}
        return dict(json.loads(line))

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # No site-packages of the user's directory and no more of the environment than is needed.
        keep = ("PATH", "PYTHONPATH", "PYTHONHOME", "TZ", "SYSTEMROOT", "VIRTUAL_ENV")
        clean = {name: os.environ[name] for name in keep if name in os.environ}
        root = str(Path(__file__).resolve().parents[2])
        clean["PYTHONPATH"] = os.pathsep.join(filter(None, [root, clean.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "segpt.data.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean | {"PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C in a terminal is for whoever asked
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        self._process, self._lines = process, lines
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # what was still to be written has nobody to read it


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    """Pass on what the process writes; an empty line says that it ended."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except (OSError, ValueError):
        pass
    lines.put("")


PROCESS = TemplateProcess()
