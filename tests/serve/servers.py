"""Servers of small models for tests, in a thread of this process or driven without a socket."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from segpt.config.chat import PLAIN
from segpt.serve.app import make_app
from segpt.serve.engine import Engine
from segpt.serve.limits import Limits
from segpt.stages.chat_template import ModelTemplate
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.read_model import read_model

MODEL = Path(__file__).resolve().parents[2] / "artifacts" / "demo256-3.segpt"
NAME = "demo"
NONE = ModelTemplate(PLAIN, "none")


class Running:
    """A server that runs: its address, its engine and its model."""

    def __init__(self, port: int, engine: Engine, opened: OpenedModel) -> None:
        self.port, self.engine, self.opened = port, engine, opened
        self.url = f"http://127.0.0.1:{port}"

    def idle(self, seconds: float = 20) -> bool:
        """Wait until nothing is at work."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.engine.busy == (0, 0):
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def running(limits: Limits, template: ModelTemplate = NONE) -> Iterator[Running]:
    import uvicorn

    opened = open_model(read_model(MODEL))
    engine = Engine(limits, "cpu", "auto")
    app = make_app(opened, template, NAME, engine)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        config = uvicorn.Config(app, log_level="warning", lifespan="on", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(listening.getsockname()[1], engine, opened)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
