"""``segpt data``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpt import __version__
from segpt.data.selection import Selection, read_criterion
from segpt.data.sources import find, shown
from segpt.errors import DataError, InterruptError, SpecError
from segpt.workspace import newest

from . import _options, _report
from ._remember import remember
from ._token_files import described, inspect_command, link_command, place_name, show_splits

if TYPE_CHECKING:
    from segpt.values import Text, Tokenizer, Tokens

FIELD = "Field of jsonl, json and parquet that holds the text; a.b is b inside of a."
HELD_OUT = 0.05  # of a text, unless the user says otherwise


@click.group("data", cls=_options.CommandGroup)
def command() -> None:
    """Turn text into token shards, check them, and fetch the files of benchmarks."""


command.add_command(inspect_command)
command.add_command(link_command)


@command.command("prepare")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option(
    "--validation",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Validation text; without it, a part of TEXT is held out.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Fraction to hold out: of the documents, by their hash, or of a single one its end.  "
    "[default: 0.05]",
)
@click.option(
    "--tokenizer",
    help="A .model or .json file, 'bytes', or what was made with a tokenizer: a prepared text, a "
    "run, a checkpoint, a quantized model, an artifact.",
)
@click.option(
    "--vocab",
    type=click.IntRange(min=1),
    help="Vocabulary to train otherwise.  [default: 4096, or fewer for less than 1 MB of text]",
)
@click.option("--field", default="text", show_default=True, help=FIELD)
@click.option(
    "--keep",
    multiple=True,
    metavar="CONDITION",
    help="Keep documents whose field is so: 'score>=2.75', 'language==en'. May be repeated.",
)
@click.option(
    "--min-chars", type=click.IntRange(min=1), help="Keep documents of so many characters or more."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="End the training part with the document that reaches so many tokens.",
)
@_options.out("The directory to write.  [default: runs/data/NAME]")
@click.option(
    "--resume", is_flag=True, help="Go on where an interrupted call stopped; so it does anyway."
)
@_options.as_json
def prepare_command(
    texts: tuple[Path, ...],
    validation: tuple[Path, ...],
    held_out: float | None,
    tokenizer: str | None,
    vocab: int | None,
    field: str,
    keep: tuple[str, ...],
    min_chars: int | None,
    limit: int | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Tokenize TEXT: files or directories of txt, jsonl, ndjson, json or parquet.

    They may be compressed (.gz, .bz2, .xz, .zst). A single document is split near its end, at the
    end of a paragraph or line. Without TEXT, the built-in text: Python's own documentation.
    """
    from segpt.data.tokenizer import VOCABULARIES
    from segpt.stages import prepare
    from segpt.stages.tokenizers import open_tokenizer

    if tokenizer is not None and vocab is not None:
        raise SpecError("--vocab is the size of a new tokenizer; leave out --vocab or --tokenizer")
    if validation and held_out is not None:
        raise SpecError("--validation is all that is held out; leave out --held-out")
    if validation and not texts:
        raise SpecError("--validation belongs to a training text; name that too")
    if not texts and tokenizer is None:
        vocab = vocab or VOCABULARIES[0]
    known = None if tokenizer is None else open_tokenizer(tokenizer)
    selection = Selection(tuple(map(read_criterion, keep)), min_chars or 0)
    if selection and not texts:
        raise SpecError("--keep and --min-chars choose among documents of TEXT; name that too")
    reading = _Reading(texts, validation, field, held_out or HELD_OUT, selection)
    reading.source |= {} if limit is None else {"limit": limit}
    source = reading.source | {"tokenizer": vocab if known is None else known.fingerprint}
    if out is None:
        name = reading.place if texts else _builtin_name(known, vocab)
        out = prepare.place_for(newest.RUNS / "data" / name, source)
    reading.check_out(out)
    prepare.check_vacant(out)
    _report.notice(reading.line)
    done = prepare.prepared(out, source)
    if done is not None:
        _report.notice(f"{shown(out)} holds this text already; nothing to do")
    else:
        done = _prepare(reading, known, vocab, out, source)
    remember("data", out)
    show_splits(out, done, as_json)


def _prepare(
    reading: "_Reading",
    known: "Tokenizer | None",
    vocab: int | None,
    out: Path,
    source: Mapping[str, Any],
) -> "tuple[Tokens, Tokens]":
    """Tokenize what is read, with a tokenizer of its own unless one is known."""
    from segpt.config.recipe import Bpe
    from segpt.stages import prepare

    if prepare.draft_of(out).is_dir():
        _report.notice(f"{shown(out)}: going on where an interrupted call stopped, if it was this")
    try:
        with reading.bar as bar:
            train, held = reading.split()

            def learnt() -> "Tokenizer":
                _report.notice("training a tokenizer" + (f" of {vocab:,} pieces" if vocab else ""))
                made = prepare.make_tokenizer(Bpe(vocab=vocab) if vocab else None, train)
                if vocab is None:
                    _report.notice(
                        f"the tokenizer has {made.vocab:,} pieces, which suits the size of the "
                        "text; --vocab sets another number"
                    )
                return made

            return prepare.prepare(
                train,
                held,
                known or learnt,
                out,
                lambda split, size: bar.say(f"{split}: {size:,} bytes"),
                source=source,
                limit=source.get("limit"),
            )
    except KeyboardInterrupt:
        from . import LINE

        raise InterruptError(
            f"stopped; {shown(out)} is as it was before, and what is finished is kept. To go on, "
            f"repeat the command: {click.get_current_context().meta[LINE]}"
        ) from None


class _Reading:
    """The text that is prepared: its files, how it is split, and what to call it.

    Attributes:
        source: all that the split texts depend on, as JSON values.
        line: what is read, for people.
        place: the name of its directory.
        bar: progress, of each time that the files are read.
    """

    def __init__(
        self,
        texts: Sequence[Path],
        validation: Sequence[Path],
        field: str,
        fraction: float,
        selection: Selection,
    ) -> None:
        self._files = find(texts, _report.notice) if texts else ()
        self._held = find(validation, _report.notice) if validation else ()
        self._field, self._fraction, self._selection = field, fraction, selection
        self._named = [*texts, *validation]
        self.bar = _report.Bar("read text" if texts else "tokenize")
        self.source = {
            "segpt": __version__,
            "texts": _states(self._files) if texts else ["builtin", sys.version],
            "validation": _states(self._held),
            "field": field,
            "held_out": None if validation or not texts else fraction,
        }
        if selection:  # what was prepared before there were any stays known
            conditions = [str(condition) for condition in selection.conditions]
            self.source |= {"keep": conditions, "characters": selection.characters}
        self.place = place_name(texts[0]) if texts else ""
        self.line = self._line()

    def split(self) -> "tuple[Text, Text]":
        """The training and the validation text."""
        from segpt.data.corpus import builtin
        from segpt.stages.prepare import hold_out

        if not self._files:
            return builtin("train"), builtin("validation")
        train = self._text(self._files)
        if self._held:
            return train, self._text(self._held)
        return hold_out(train, self._fraction, _report.notice)

    def check_out(self, out: Path) -> None:
        """Refuse a directory that holds what is read.

        Raises:
            DataError: naming it.
        """
        place = out.resolve()
        for path in [*self._files, *self._held, *self._named]:
            if place in (path.resolve(), *path.resolve().parents):
                raise DataError(
                    f"{shown(out)}: holds the text itself ({shown(path)}); choose another "
                    "directory with --out"
                )

    def _text(self, files: Sequence[Path]) -> "Text":
        from segpt.data.text import read_text

        total = max(1, sum(path.stat().st_size for path in files))
        return read_text(
            files,
            field=self._field,
            selection=self._selection,
            report=lambda done: self.bar(done / total),
            notice=_report.notice,
        )

    def _line(self) -> str:
        if not self._files:
            return "text: builtin, Python's own documentation, 7 % of its documents held out"
        if self._held:
            return f"text: {described(self._files)}; validation: {described(self._held)}"
        return f"text: {described(self._files)}, {100 * self._fraction:g} % held out"


def _states(files: Sequence[Path]) -> list[list[str | int]]:
    """What changes when a file does."""
    states = [(path, path.stat()) for path in files]
    return [[shown(p.resolve()), state.st_size, state.st_mtime_ns] for p, state in states]


def _builtin_name(tokenizer: "Tokenizer | None", vocab: int | None) -> str:
    """What the built-in text under a tokenizer is called; `segpt train` looks for these names."""
    if tokenizer is None:
        return f"builtin-{vocab}"
    return f"builtin-{'bytes' if tokenizer.kind == 'bytes' else tokenizer.fingerprint[:8]}"


@command.command("check")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("validation", type=click.Path(path_type=Path))
@_options.as_json
def check_command(train: Path, validation: Path, as_json: bool) -> None:
    """Verify two token directories and find documents that are in both; exit 1 if there are."""
    from segpt.data.tokens import overlap, read_tokens

    shared = overlap(*(read_tokens(place, rehash=True) for place in (train, validation)))
    _report.emit(
        {"overlap": int(shared.size)},
        as_json,
        [f"{shared.size} documents are in both"]
        + [f"  sha256 begins {int(value):016x}" for value in shared[:10]],
    )
    if shared.size:
        raise SystemExit(1)


@command.command("fetch")
@click.argument("name", type=click.Choice(["core"]))
@_options.out("The directory to write.  [default: runs/NAME]")
@click.option("--url", help="Another place of the archive: a URL or a file.")
@_options.as_json
def fetch_command(name: str, out: Path | None, url: str | None, as_json: bool) -> None:
    """Fetch the files of a benchmark: core, which is the 22 tasks of CORE.

    Each file is compared with the original by its SHA-256. Where there is no network, fetch the
    archive elsewhere and name it with --url.
    """
    from segpt.tasks import fetch

    out = out or newest.RUNS / name
    with _report.Bar(f"fetch {name}") as bar:
        fetched = fetch.fetch(
            url or fetch.URL,
            out,
            report=lambda done, total: bar(done / total if total else 0, f"{done:,} bytes"),
        )
    remember(name, out)
    files = {path: source.plain() for path, source in fetched.sources.items()}
    others = [path for path, source in fetched.sources.items() if not source.verbatim]
    _report.emit(
        {"out": str(out), "sha256": fetched.archive, "files": files},
        as_json,
        [str(out), f"archive: SHA-256 {fetched.archive}"]
        + [f"{len(files) - len(others)} of {len(files)} files are the original ones"]
        + [f"  another: {path}, SHA-256 {fetched.sources[path].sha256}" for path in others],
    )
