"""A shell in which the commands of the documentation run within seconds.

``segpt`` is the command line itself, on less: the built-in text and vocabularies are cut, and a
recipe that is to be trained keeps everything but its model and its length, after it has been read
whole. Commands come from one process that has loaded torch and forks, which saves the seconds that
loading takes. What a machine may lack is stood in for: ``torchrun`` starts two processes, ``srun``
one, ``sbatch`` and ``sky`` run the files that they are given, ``make`` and ``pip`` check that a
target or an extra exists.
"""

import contextlib
import dataclasses
import gc
import importlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASK = Path(__file__).with_name("ask.py")  # starts in a moment, as it loads next to nothing
PLACE = "SEGPT_DOCUMENTED"  # the environment variable that names the directory of the server
STAND_INS = ("make", "pip", "python", "sbatch", "scontrol", "segpt", "sky", "srun", "torchrun")

# Not to be had without a network: what they are told is parsed, no more.
PARSED_ONLY = (("data", "fetch"), ("eval",))

LENGTH = re.compile(r"^(train\.(?:length=\{kind: steps, count: |horizon=))(\d+)")
TUNING = re.compile(r"^(quantize\.tune_steps=)\d+")
VOCAB, TRAINED, HELD_OUT = 512, 40, 4  # pieces, and documents of each split
LONGEST = 2000  # bytes of a document
RECIPE = f"""
name: small
about: a model for tests
tokenizer: {{kind: bpe, vocab: {VOCAB}}}
model:
  vocab: {VOCAB}
  width: 16
  context: 32
  depth: 2
  route: "0 (1)*2@0.5"
  layer:
    wiring: parallel
    join: [mix_input]
    mixer: {{heads: 2, kv_heads: 1, head_dim: 8, query_key: [norm, {{kind: rope, dims: 4}}, gain]}}
    feed: {{hidden: 32}}
train:
  length: {{kind: steps, count: 12}}
  batch: 8
  average: {{decay: 0.9}}
  save_every: 2
  log_every: 2
  validate_every: 6
  validate_tokens: 1024
"""


def stand_in(place: Path) -> None:
    """Write the commands of ``STAND_INS`` into a directory that is first on the path."""
    place.mkdir()
    for name in STAND_INS:
        line = f'exec {shlex.quote(sys.executable)} -I {shlex.quote(__file__)} {name} "$@"\n'
        if name == "segpt":
            line = f'exec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(ASK))} "$@"\n'
        if name == "python":
            line = f'exec {shlex.quote(sys.executable)} "$@"\n'
        (place / name).write_text(f"#!/bin/sh\n{line}")
        (place / name).chmod(0o755)


def shrink() -> None:
    """Make text, vocabularies and models small, for every command of this process."""
    corpus: Any = importlib.import_module("segpt.data.corpus")
    recipes: Any = importlib.import_module("segpt.config.recipe")
    values: Any = importlib.import_module("segpt.values")
    first: Any = importlib.import_module("segpt.config.stages").FIRST
    read_builtin, read_recipe = corpus.builtin, recipes.read_recipe
    count = {"train": TRAINED, "validation": HELD_OUT}

    def builtin(split: str) -> Any:
        documents = [text[:LONGEST] for text in list(read_builtin(split))[: count[split]]]
        return values.Text(f"builtin/{split}", lambda: iter(documents))

    def read(source: str | Path, settings: tuple[str, ...] = (), choice: Any = first) -> Any:
        whole = read_recipe(source, settings, choice)
        if "--dry-run" in sys.argv:
            return whole
        less = read_recipe(Path(os.environ[PLACE]) / "small.yaml")
        steps = getattr(whole.train.length, "count", 600)
        train = dataclasses.replace(
            less.train,
            seed=whole.train.seed,
            keep=whole.train.keep,
            length=dataclasses.replace(less.train.length, count=shortened(steps)),
            horizon=whole.train.horizon and shortened(whole.train.horizon),
        )
        quantize = dataclasses.replace(
            whole.quantize, calibration_tokens=2048, report_tokens=1024, search=0, tune_steps=0
        )
        small = {"tokenizer": less.tokenizer, "model": less.model}
        return dataclasses.replace(whole, **small, train=train, quantize=quantize)

    corpus.builtin, recipes.read_recipe = builtin, read
    carried: Any = importlib.import_module("segpt.stages.resolve_spec")
    of_checkpoint = carried.of_checkpoint

    def of_shorter(checkpoint: Any, settings: tuple[str, ...] = ()) -> Any:
        """What goes on with a run stops as much earlier as one that begins."""
        return of_checkpoint(checkpoint, [_shorter(s) for s in settings])

    carried.of_checkpoint = of_shorter
    prepare: Any = importlib.import_module("segpt.stages.prepare")
    make_tokenizer = prepare.make_tokenizer

    def make(spec: Any, text: Any) -> Any:
        if isinstance(spec, recipes.Bpe):
            spec = dataclasses.replace(spec, vocab=min(spec.vocab, VOCAB))
        return make_tokenizer(spec, text)

    prepare.make_tokenizer = make


def _shorter(setting: str) -> str:
    """A setting with fewer steps in it, if it says how many."""
    setting = TUNING.sub(r"\g<1>2", setting)
    return LENGTH.sub(lambda length: f"{length[1]}{shortened(int(length[2]))}", setting)


def shortened(steps: int) -> int:
    """How many steps are made of so many; more of more."""
    return min(20, max(4, steps // 50))


def serve() -> None:
    """Load everything once, then run each command in a fork, where and as its caller is."""
    sys.path.insert(0, str(ROOT))
    little_text = importlib.import_module("tests.little_text")
    exec(little_text.BEFORE.format(place=f"{os.environ[PLACE]}/library"))
    shrink()
    import torch

    from segpt.__main__ import load_commands

    torch.set_num_threads(1)
    load_commands()
    arrows = [f"stages.{name}" for name in ("train", "quantize", "pack", "score")]
    for module in (*arrows, "coding.compress", "leaderboard.compare"):
        importlib.import_module(f"segpt.{module}")
    # what counts operations loads the first, and what draws the second
    for module in ("torch._dynamo", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)
    list(importlib.import_module("segpt.data.corpus").builtin("validation"))
    gc.collect()
    gc.freeze()  # or the first collection of every command would go through all of it
    gc.set_threshold(100_000, 50, 1000)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(Path(os.environ[PLACE]) / "socket"))
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(caller)
            caller.close()


def _answer(caller: socket.socket) -> None:
    """Run one command with the streams, directory and environment that came with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(caller, 4, 3)
    asked = json.loads(caller.makefile("rb").read(int.from_bytes(size, "little")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # those of the server may be files, in which one can seek; these are what the caller has
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    os.chdir(asked["place"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["segpt", *asked["words"]]
    code = dry_run(asked["words"]) if "--dry-run" in asked["words"] else command(asked["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    caller.sendall(bytes([code]))
    os._exit(code)


def command(words: list[str]) -> int:
    """Run ``segpt`` in this process, or only parse what is too long for a test."""
    import click

    from segpt.__main__ import load_commands

    main = load_commands().main
    try:
        if words[:1] == ["torchrun"]:
            launch(words[1:])
            return 0
        for prefix in PARSED_ONLY:
            if tuple(words[: len(prefix)]) == prefix:
                found: Any = main
                for word in prefix:
                    found = found.get_command(click.Context(found), word)
                found.make_context(" ".join(prefix), words[len(prefix) :])
                return 0
        main(words, prog_name="segpt")
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(bool(done.code))
    return 0


def dry_run(words: list[str]) -> int:
    """A command that is to say what it would do, and to leave nothing behind."""
    before, printed = sorted(Path().rglob("*")), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = command(words)
    sys.stdout.write(printed.getvalue())
    assert code or "parameters: " in printed.getvalue(), words
    assert sorted(Path().rglob("*")) == before, words
    return code


def torchrun(words: list[str]) -> int:
    """Two processes on this machine, however many machines and processes are asked for."""
    line = [sys.executable, "-I", "-S", str(ASK)]
    if code := subprocess.run([*line, "torchrun", *words], check=False).returncode:
        return code
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    line += words[words.index("-m") + 2 :]
    ranks = [
        subprocess.Popen(line, env=os.environ | world | {"RANK": str(rank)}) for rank in range(2)
    ]
    return max(rank.wait() for rank in ranks)


def launch(words: list[str]) -> None:
    """Check what ``torchrun`` is told, by its own parser."""
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(words)
    if not asked.module or asked.training_script != "segpt":
        sys.exit(f"torchrun: {words}: write -m segpt")


def batch(words: list[str]) -> int:
    """``sbatch``: parse the script, check what it asks of Slurm, and run it once."""
    script = Path(next(word for word in words if not word.startswith("-")))
    subprocess.run(["bash", "-n", script], check=True)
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH"):
            assert re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line), line
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    return subprocess.run(["bash", script], env=os.environ | slurm, check=False).returncode


def srun(words: list[str]) -> int:
    """Once instead of once on every machine."""
    while words and words[0].startswith("-"):
        assert re.fullmatch(r"--[a-z-]+(=\S+)?", words.pop(0))
    return subprocess.run(words, check=False).returncode


def sky(words: list[str]) -> int:
    """``sky launch``: check the task's keys, and run what it sets up and runs."""
    import yaml

    assert words[0] in ("launch", "exec"), words
    task = yaml.safe_load(Path(words[-1]).read_text())
    known = {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    assert task.keys() <= known, task.keys() - known
    world = {"SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NODE_RANK": "0"}
    world |= {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "2"}
    world |= {name: str(value) for name, value in task.get("envs", {}).items()}
    for part in ("setup", "run"):
        done = subprocess.run(
            ["bash", "-e", "-c", task.get(part, "")], env=os.environ | world, check=False
        )
        if done.returncode:
            return done.returncode
    return 0


def make(words: list[str]) -> int:
    """A target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return int(
        not all(re.search(rf"^{re.escape(word)}:.*##", text, re.MULTILINE) for word in words)
    )


def pip(words: list[str]) -> int:
    """Of segpt's own extras and groups, those that exist; nothing is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert words[0] == "install", words
    for extra in re.findall(r"(?:segpt|\.)\[([^\]]*)\]", " ".join(words)):
        names = set(extra.split(","))
        assert names <= project["project"]["optional-dependencies"].keys(), names
    return 0


def scontrol(words: list[str]) -> int:
    """``scontrol show hostnames``."""
    assert words[:2] == ["show", "hostnames"], words
    sys.stdout.write("localhost\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    run = {"sbatch": batch}.get(sys.argv[1]) or globals()[sys.argv[1]]
    sys.exit(run(sys.argv[2:]))
