"""Preparing text where something else was prepared before."""

from pathlib import Path

from segpt.data.tokenizer import BYTES
from segpt.spec.recipe import Bpe
from segpt.stages.prepare import builtin_splits, prepare
from segpt.values import Text


def test_builtin_text_is_made_anew_for_another_tokenizer(tmp_path: Path) -> None:
    out = tmp_path / "builtin"
    prepare(Text("a", lambda: iter([b"a"])), Text("b", lambda: iter([b"b"])), BYTES, out)
    train, validation = builtin_splits(Bpe(vocab=512), out, lambda split, done: None)
    assert train.tokenizer.vocab == validation.tokenizer.vocab == 512
    assert train.bytes > 1_000_000
    again, _ = builtin_splits(Bpe(vocab=512), out, lambda split, done: None)
    assert again.digest == train.digest
