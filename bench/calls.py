"""The commands that are run in both trees: every command of segpt, on as little as shows a change.

A command is what follows ``segpt``. Those of a group come one after the other, and after the groups
that the group needs, as they read what these have made.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

TWINS = ("imu1", "golf16", "daisy", "frontier", "seed004", "lapp0")
COMMANDS = (
    *("average", "compare", "compress", "data", "decompress", "demo", "doctor", "eval", "inspect"),
    *("leaderboard", "pack", "quantize", "recipes", "report", "runs", "sample", "score"),
    *("tokenizer", "train", "data prepare", "data check", "data fetch", "recipes show"),
    *("tokenizer train", "leaderboard add", "leaderboard claim", "leaderboard baseline"),
    *("leaderboard check", "leaderboard repair", "leaderboard show", "leaderboard render"),
    *("leaderboard verify", "leaderboard export", "leaderboard check-folder"),
)


class Call(NamedTuple):
    """A command, and what it has to do in both trees for the comparison to mean anything.

    Attributes:
        line: what follows ``segpt``, or another program of :data:`PROGRAMS` and what follows that.
        code: how it ends.
        outlined: whether only the keys of its JSON are compared, as it tells of the machine.
        sized: whether it tells sizes that depend on names of modules or on how long a run took.
    """

    line: str
    code: int = 0
    outlined: bool = False
    sized: bool = False

    def words(self) -> list[str]:
        """The command as arguments of Python."""
        first, *rest = shlex.split(self.line)
        return [*PROGRAMS[first], *rest] if first in PROGRAMS else ["-m", "segpt", first, *rest]


class Group(NamedTuple):
    """Commands that belong together, and the groups that have to run before."""

    calls: tuple[Call, ...]
    needs: tuple[str, ...] = ()


# Records, their chain and pages hold what a score took, so it is set to the same on both sides.
_SETTLE = """import json, sys
for name in sys.argv[1:]:
    with open(name) as file:
        score = json.load(file)
    with open(name, "w") as file:
        json.dump(score | {"seconds": 1.5}, file)
"""
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "settle": ("-c", _SETTLE),
    "submission/train_gpt.py": ("submission/train_gpt.py",),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
}


def _lines(*calls: str | Call) -> tuple[Call, ...]:
    return tuple(call if isinstance(call, Call) else Call(call) for call in calls)


_BRIEF = (
    "--set train.validate_tokens=2048 --set train.validate_every=2 --set train.save_every=2 "
    "--set train.log_every=1 --set train.batch=2"
)
_FIFTY = (
    "train --recipe demo --data builtin --set train.batch=4 --set train.validate_tokens=2048 "
    "--set train.log_every=5 --set train.save_every=25"
)
_LITTLE = "--set quantize.calibration_tokens=2048 --set quantize.report_tokens=1024"
_BOTH = f"{_LITTLE} --set quantize.search=1 --set quantize.tune_steps=1"  # of what takes long
_TEXTS = "runs/demo-1.segpt held.jsonl"


def _train() -> Iterator[str]:
    for seed in (1, 2):
        yield f"{_FIFTY} --steps 50 --seed {seed} --out runs/demo-{seed} --json"
    yield f"{_FIFTY} --steps 20 --set train.horizon=50 --seed 1 --out runs/part --json"
    yield "train --resume runs/part --steps 50 --json"
    yield "train --resume runs/part --json"


def _twins() -> Iterator[str | Call]:
    for name in TWINS:
        rest = f"--data runs/data/text --steps 4 {_BRIEF} --out runs/{name} --json"
        yield f"train --recipe {name}-small {rest}"
    rest = f"--data runs/data/text --steps 2 {_BRIEF} --json"
    yield f"train --recipe imu1-decay-small --init runs/imu1 --out runs/decay {rest}"
    yield f"train --recipe imu1-midtrain-small --init runs/decay --out runs/midtrain {rest}"
    for name in ("fast", "lanes"):
        yield f"train --recipe {name}.yaml --data runs/data/bytes --out runs/{name} --json"
    yield "average runs/imu1 --last 2 --json"
    yield "average runs/imu1 --last 2 --mean --out runs/mean --json"
    yield Call("train --recipe golf16 --dry-run --rules golf --json", outlined=True)


def _scores() -> Iterator[str]:
    ways = (
        "--out strided.json --mode strided",
        "--mode strided --stride 16 --context 64",
        "--mode strided --boundaries document",
        "--out frozen.json --mode rolling",
        "--mode rolling --context 64",
        "--mode rolling --boundaries document",
        "--ttt --out best.json",
        *(f"--ttt {name}" for name in ("sgd", "low_rank", "phased", "ngram")),
        *(f"--ttt {name}+ngram" for name in ("sgd", "low_rank")),
        "--ttt sgd --set adapt.momentum=0.9 --set adapt.epochs=2 --set adapt.anneal=cosine",
        "--ttt low_rank --mode strided",
        "--recipe demo --gain",
    )
    for way in ways:
        yield f"score {_TEXTS} {way} --json"
    yield "score runs/demo-1.segpt note.txt --prove --json"
    yield "score runs/demo-1.segpt note.txt --audit --audit-seed 1 --json"
    yield "score runs/fast.segpt note.txt --ttt sgd+ngram --audit --audit-seed 2 --json"
    yield "score runs/fast.segpt held.jsonl --ttt in_place --json"
    yield "score runs/fast.segpt held.jsonl --loops 1,2,3 --json"
    yield "score runs/golf16 runs/data/text/validation/validation_000000.bin --truncate 512 --json"
    yield "score runs/demo-1-quantized note.txt --json"
    yield "score runs/lanes note.txt --mode rolling --json"
    yield "settle strided.json frozen.json best.json"


def _boards() -> Iterator[str]:
    here = "--dir board --json"
    entry = "--track small --date 2026-01-02"
    yield f"leaderboard baseline xz --text held.jsonl --name xz-small {entry} {here}"
    yield (
        "leaderboard claim --name claimed --author Grace --value 1.2 --values 1.19,1.2,1.21 "
        f"--bytes 900000 --source https://example.org/figures {entry} {here}"
    )
    yield (
        "leaderboard add runs/demo-1.segpt --score frozen.json --score best.json --name first "
        f"--author Ada --about 'A small one.' --recipe 'segpt demo' {entry} {here}"
    )
    for rest in ("check", "show", "show first", "render", "render --check", "repair"):
        yield f"leaderboard {rest} {here}"
    yield f"leaderboard verify xz-small first --text held.jsonl --artifact runs/demo-1.segpt {here}"
    yield "leaderboard verify xz-demo-256kb --json"
    for rest in ("check", "show", "show demo256-half", "render --check"):
        yield f"leaderboard {rest} --json"
    yield "leaderboard show --track demo-1mb"
    yield "leaderboard check"


def _contest() -> Iterator[str | Call]:
    yield Call(
        "leaderboard export runs/demo-1.segpt --contest parameter-golf --score frozen.json "
        "--author Ada --github ada --name Small --date 2026-01-02 --out submission --json",
        sized=True,
    )
    yield "leaderboard check-folder submission --json"
    yield Call("submission/train_gpt.py held.jsonl", sized=True)


GROUPS: Mapping[str, Group] = {
    "help": Group(_lines("--help", *(f"{name} --help" for name in COMMANDS))),
    "recipes": Group(
        _lines(
            "recipes",
            "recipes --json",
            *(f"recipes show {name}-small --json" for name in TWINS),
            "recipes show demo --set train.batch=4",
            "recipes show demo --set train.batch=4 --json",
        )
    ),
    "refusals": Group(
        _lines(
            *(
                Call(line, 2)
                for line in (
                    "scoer",
                    "score --strides 8",
                    "score no-such-file.segpt note.txt",
                    "train --recipe no-such-recipe",
                    "train --set model.n_layer=4",
                    "train --resume no-such-run",
                    "quantize no-such-run",
                    "leaderboard show no-such-entry",
                    "inspect note.txt",
                )
            )
        )
    ),
    "data": Group(
        _lines(
            "data prepare train.jsonl --vocab 1024 --out runs/data/text --json",
            "data prepare train.jsonl --vocab 1024 --out runs/data/text --json",
            "data prepare train.jsonl --tokenizer bytes --out runs/data/bytes --json",
            "data check runs/data/text/train runs/data/text/validation --json",
            Call("data check runs/data/text/train runs/data/text/train --json", 1),
            "tokenizer train held.jsonl --vocab 512 --out runs/tokenizer.json --json",
        )
    ),
    "train": Group(_lines(*_train())),
    "twins": Group(_lines(*_twins()), ("data",)),
    "quantize": Group(
        _lines(
            f"quantize runs/demo-1 --bits 6 {_LITTLE} --out runs/six --json",
            f"quantize runs/demo-1 --bits 8 {_LITTLE} --out runs/eight --json",
            f"quantize runs/demo-1 --method nearest --bits 8 {_LITTLE} --out runs/near --json",
            f"quantize runs/demo-1 --budget 700kB {_LITTLE} --json",
            *(f"pack runs/{name} --budget 2MB --json" for name in ("six", "eight", "near")),
            Call("pack runs/demo-1-quantized --budget 1000 --json", 1),
            "pack runs/demo-1-quantized --json",
            "inspect runs/demo-1.segpt",
            "inspect runs/demo-1.segpt runs/six.segpt --json",
            Call("inspect runs/demo-1.segpt --budget 10 --json", 1),
        ),
        ("train",),
    ),
    "small": Group(
        _lines(
            "quantize runs/fast --bits 6 --json",
            f"quantize runs/lanes --budget 60000 {_BOTH} --json",
            f"quantize runs/fast --method rd --bits 3 {_BOTH} --out runs/rd --json",
            "pack runs/fast-quantized --json",
            "pack runs/lanes-quantized --json",
            "pack runs/rd --json",
        ),
        ("twins",),
    ),
    "score": Group(_lines(*_scores()), ("quantize", "small")),
    "core": Group(
        _lines(
            *(
                f"score {model} --core hellaswag,winograd,lambada_openai --bundle core "
                f"--max-per-task 11 --out {out} --json"
                for model, out in (
                    ("runs/demo-1.segpt", "core.json"),
                    ("runs/demo-1", "whole.json"),
                )
            ),
            "eval runs/demo-1.segpt --tasks tiny --include-path tasks --device cpu --json",
        ),
        ("quantize",),
    ),
    "compress": Group(
        _lines(
            *(
                f"{command} --artifact runs/demo-1.segpt --json"
                for name, how in (("plain", ""), ("ngram", " --ttt ngram"), ("sgd", " --ttt sgd"))
                for command in (
                    f"compress note.txt --out {name}.segz{how}",
                    f"decompress {name}.segz --out {name}.txt",
                )
            )
        ),
        ("quantize",),
    ),
    "sample": Group(
        _lines(
            "sample runs/demo-1.segpt 'The ' 'class ' --tokens 24",
            "sample runs/demo-1.segpt 'The ' 'class ' --tokens 24 --seed 3 --no-cache --json",
            "sample runs/demo-1.segpt 'The ' --tokens 24 --temperature 0 --json",
            "sample runs/fast.segpt 'The ' --tokens 24 --top-k 5 --repetition-penalty 1.3 --json",
        ),
        ("quantize", "small"),
    ),
    "board": Group(_lines(*_boards()), ("score",)),
    "contest": Group(_lines(*_contest()), ("score",)),
    "compare": Group(
        _lines(
            "compare strided.json frozen.json --json",
            "compare frozen.json best.json",
        ),
        ("score",),
    ),
    "report": Group(
        _lines(
            "report runs/demo-1 --json",
            "report runs/lanes --out lanes.html --json",
            Call("runs --json", sized=True),
            "runs runs/data",
        ),
        ("quantize", "small", "data"),
    ),
    "demo": Group(
        _lines(
            "demo --budget 100000 --set tokenizer.vocab=512 --set model.vocab=512 "
            "--set model.width=48 --set model.depth=1 --set model.layer.mixer.heads=1 "
            "--set model.layer.feed.hidden=64 --set train.length.count=8 "
            "--set train.validate_tokens=2048 --set quantize.calibration_tokens=4096 "
            "--set quantize.report_tokens=2048 --set 'adapt={kind: frozen}' --out runs/tiny --json"
        )
    ),
    "processes": Group(
        _lines(
            "torchrun segpt train --recipe lanes.yaml --data runs/data/bytes --out runs/two --json",
            "torchrun segpt score runs/two note.txt --mode strided --ttt sgd --json",
        ),
        ("data",),
    ),
    "doctor": Group(_lines(Call("doctor --json", outlined=True))),
}


def ordered(names: Collection[str]) -> list[str]:
    """Groups and what they need, in an order in which they can run; all of them for none."""
    wanted = set(names or GROUPS)
    while more := {need for name in wanted for need in GROUPS[name].needs} - wanted:
        wanted |= more
    return [name for name in GROUPS if name in wanted]
