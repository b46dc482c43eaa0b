"""Every command that the README and docs show runs as it is written.

The ``sh`` blocks of a page run one after the other, in a copy of a directory in which a small model
has been through the line: ``runs/`` as `segpt data prepare`, `train`, `quantize`, `pack` and `score
--out` leave it, its pack as ``model.segpt``, what it was not trained on (``text.txt``, ``my.txt``,
``other.txt`` and ``corpus/``), token shards ``val_*.bin``, ``scores/before`` and ``scores/after``
of three seeds each, a model of Hugging Face in ``my-model/``, and the repository's ``artifacts/``
and ``leaderboard/``. A fenced block after a line that is a file's name in backquotes and a colon,
such as "`train.sbatch`:", is written to that file first.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from segpt.__main__ import load_commands
from tests import little_text
from tests.bundles import write_bundle
from tests.convert.models import model_directory
from tests.house.documented import PLACE, RECIPE, ROOT, stand_in

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
CHECKS = "docs/checks.md"  # whose figures are looked at, too
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SLOWEST = 240  # seconds, of one page
LONGEST = 2000  # characters of a page in a text


def shell(script: str, place: Path, environment: dict[str, str]) -> str:
    """What a script of the documentation prints; it fails at its first failing command."""
    trace = "set -eEuo pipefail; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n"
    done = subprocess.run(
        ["bash", "-c", trace + script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SLOWEST,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-500:]
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which documented commands run, and the process that answers them."""
    place = tmp_path_factory.mktemp("documented")
    (place / "small.yaml").write_text(RECIPE)
    stand_in(place / "bin")
    little_text.library(place / "library")
    found = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS")}
    found |= {PLACE: str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    found |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    with (place / "errors").open("w") as errors:
        line = [sys.executable, str(ROOT / "tests" / "house" / "documented.py"), "serve"]
        server = subprocess.Popen(line, env=found, cwd=place, stderr=errors)
        while not (place / "socket").exists():
            assert server.poll() is None, (place / "errors").read_text()
            time.sleep(0.05)
        yield found
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a small model has been through the line."""
    place = tmp_path_factory.mktemp("trained")
    (place / "corpus").mkdir()
    for index, name in enumerate(("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")):
        paragraphs = (ROOT / name).read_text(encoding="utf-8").split("\n\n")
        text = "".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs)
        (place / "corpus" / f"part-{index}.jsonl").write_text(text)
    for name, pages in (("my.txt", "[a-m]*.md"), ("other.txt", "[n-z]*.md")):
        paths = sorted((ROOT / "docs").glob(pages))
        parts = [path.read_text(encoding="utf-8")[:LONGEST] for path in paths]
        (place / name).write_text("".join(parts), encoding="utf-8")
    first = place / "corpus" / "part-0.jsonl"
    first.with_name("part-0.jsonl.zst").write_bytes(zstandard.compress(first.read_bytes()))
    first.unlink()
    model_directory(place / "my-model", "llama")
    shutil.copytree(ROOT / "artifacts", place / "artifacts")
    shutil.copytree(ROOT / "leaderboard", place / "leaderboard")
    fixture = (ROOT / "tests" / "artifacts" / "fixture.txt").read_bytes()
    (place / "text.txt").write_bytes(fixture[:400])
    shell(
        """
        segpt data prepare --vocab 512
        for seed in 1 2 3; do
            segpt train --recipe demo256 --seed $seed --out runs/seed-$seed
            set -- runs/seed-$seed/step-*
            segpt score $1 text.txt --out scores/before/$seed.json
            segpt score $2 text.txt --out scores/after/$seed.json
        done
        segpt train
        segpt quantize
        segpt pack
        segpt score --out runs/demo/score.json
        cp runs/demo.segpt model.segpt
        cp runs/demo.segpt.documents model.segpt.documents
        cp runs/data/*/validation/validation_*.bin .
        for shard in validation_*.bin; do mv $shard val_${shard#validation_}; done
        """,
        place,
        environment,
    )
    pointer = place / "runs" / "latest.json"
    core = {"core": str(write_bundle(place / "runs" / "core"))}
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | core))
    return place


def page(text: str) -> tuple[str, dict[str, str]]:
    """The commands of a page as one script, and the files that it spells out."""
    return "\n".join(BLOCK.findall(text)), dict(FILE.findall(text))


def run(text: str, place: Path, environment: dict[str, str]) -> str:
    """What the commands of a page print."""
    script, files = page(text)
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8")
    return shell(script, place, environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if name != CHECKS])
def test_the_commands_of_a_page_run(
    name: str, trained: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    place = shutil.copytree(trained, tmp_path / "place")
    run((ROOT / name).read_text(encoding="utf-8"), place, environment)


@pytest.mark.slow
def test_a_score_can_be_checked_by_hand(
    trained: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """What the page says about that runs as it is written, and the hashes agree."""
    place = shutil.copytree(trained, tmp_path / "place")
    held_out = (place / "text.txt").read_bytes()
    printed = run((ROOT / CHECKS).read_text(encoding="utf-8"), place, environment)
    assert "  audit, fresh_process: " in printed
    assert f"  proof: {len(held_out)} bytes of text in " in printed
    assert "VIOLATED" not in printed
    first, second = re.findall(r"\b[0-9a-f]{64}(?=  (?:text\.txt|elsewhere))", printed)
    assert first == second
    assert (place / "elsewhere" / "text.txt").read_bytes() == held_out


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "segpt score --strides 8",
        "segpt scoer",
        "segpt data fetch core --to x",
        "segpt leaderboard check --no-such-flag",
        "segpt train --recipe no-such-recipe",
        "segpt train --set train.no_such=1",
        "segpt score no-such-file.segpt | cat",
        "segpt inspect model.segpt --budget 10",
        "make no-such-target",
        "pip install 'segpt[no-such-extra]'",
        "torchrun --no-such-flag 2 -m segpt train",
        "torchrun --nproc-per-node 8 -m segpt train --no-such-flag",
        "sbatch job.sbatch",
        "sky launch -c x task.yaml",
        "cat no-such-file",
    ],
)
def test_a_command_that_is_wrong_fails(
    line: str, trained: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    place = shutil.copytree(trained, tmp_path / "place")
    job = "`job.sbatch`:\n\n```bash\nsrun segpt train --no-such-flag\n```\n"
    task = "`task.yaml`:\n\n```yaml\nrun: segpt train --no-such-flag\n```\n"
    with pytest.raises(AssertionError, match="failed: "):
        run(f"{job}\n{task}\n```sh\n{line}\n```\n", place, environment)


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = ROOT / "docs" / "README.md"
    linked = re.findall(r"\]\(([\w-]+\.md)\)", contents.read_text(encoding="utf-8"))
    assert {p.name for p in contents.parent.glob("*.md")} == {"README.md", *linked}


def test_every_command_has_a_page() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES[1:])
    shown = set(re.findall(r"^(?:segpt|.* -m segpt) ([a-z]+)", text, re.MULTILINE))
    assert load_commands().COMMANDS.keys() <= shown
