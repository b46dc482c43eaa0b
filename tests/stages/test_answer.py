"""Answers: whole characters, nothing from a stop on, conversations that fit, templates found."""

import json
from pathlib import Path

import pytest

from segpt.config.chat import CHATML, INSTRUCTION, PLAIN
from segpt.config.sample import SampleSpec
from segpt.data.chat import ChatMessage, ChatPrompt, JinjaTemplate
from segpt.data.tokenizer import BYTES, load
from segpt.errors import DataError, SegptError
from segpt.stages.answer import Answer, StoppedText
from segpt.stages.chat_template import find_template, fit
from segpt.stages.open_model import open_model
from segpt.stages.read_model import read_model
from segpt.stages.sample import sample

MODEL = Path(__file__).resolve().parents[2] / "artifacts" / "demo256-3.segpt"


def pieces(text: StoppedText, *spelled: bytes) -> list[str]:
    found = []
    for part in spelled:
        found.append(text.add(part))
        if text.stopped:
            return found
    return [*found, text.rest()]


def test_half_a_character_waits() -> None:
    sign = "🙂".encode()
    assert pieces(StoppedText(()), b"a" + sign[:2], sign[2:]) == ["a", "🙂", ""]
    assert pieces(StoppedText(()), sign[:3]) == ["", "\ufffd"]


def test_what_may_begin_a_stop_waits() -> None:
    stops = ("<end>", "\n\n#")
    assert pieces(StoppedText(stops), b"a<", b"en", b"d> b") == ["a", "", ""]
    assert pieces(StoppedText(stops), b"a<e", b"nx\n", b"\n") == ["a", "<enx", "", "\n\n"]
    assert pieces(StoppedText(stops), b"x\n\n\n#y") == ["x\n"]
    assert pieces(StoppedText(("ab", "b")), b"xaab") == ["xa"]
    assert pieces(StoppedText(("é",)), "é".encode()[:1], "é".encode()[1:]) == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_is_what_sample_writes(temperature: float) -> None:
    """With a prompt beyond what is read at once, too."""
    opened = open_model(read_model(MODEL))
    spec = SampleSpec(temperature=temperature, tokens=40, seed=3)
    for prompt in (b"The module", b"", b"some words " * 500):
        wanted = sample(opened, [prompt], spec)
        codec = opened.codec
        ids = (codec.start, *codec.encode(prompt).tolist())
        answer = Answer(opened, ChatPrompt(ids, frozenset([codec.start]), ()), spec)
        text = ""
        while answer.finish is None:
            text += answer.advance()
        assert text == wanted.texts[0].decode("utf-8", "replace")
        assert answer.tokens == wanted.tokens


def test_a_conversation_is_cut_by_whole_turns() -> None:
    codec = load(BYTES)
    said = [ChatMessage("system", "S")]
    for number in range(6):
        said += [
            ChatMessage("user", f"question {number}"),
            ChatMessage("assistant", f"answer {number}"),
        ]
    said.append(ChatMessage("user", "last"))
    whole = fit(INSTRUCTION, said, codec, 10_000)
    assert (whole.dropped, whole.messages) == (0, said)
    some = fit(INSTRUCTION, said, codec, len(whole.prompt.ids) - 1)
    assert some.dropped == 1
    assert some.messages == [said[0], *said[3:]]
    assert len(some.prompt.ids) < len(whole.prompt.ids)
    least = fit(INSTRUCTION, said, codec, 60)
    assert least.messages == [said[0], said[-1]]
    with pytest.raises(DataError, match="shorten"):
        fit(INSTRUCTION, said, codec, 20)


def test_templates_lie_beside_models(tmp_path: Path) -> None:
    artifact = tmp_path / "x.segpt"
    artifact.write_bytes(b"")
    assert find_template(artifact).template == PLAIN
    assert not find_template(artifact).instructed
    assert find_template(artifact, "chatml").template == CHATML
    (tmp_path / "x.segpt.chat_template.jinja").write_text("{{ messages }}")
    assert find_template(artifact).template == JinjaTemplate("{{ messages }}")
    assert find_template(artifact).instructed
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "header.json").write_text(json.dumps({"kind": "quantized"}))
    markers = {"user": {"before": "U:"}, "assistant": {"before": "A:", "after": "\n"}}
    (folder / "chat_template.json").write_text(json.dumps(markers))
    made = find_template(folder).template
    assert not isinstance(made, JinjaTemplate)
    assert made.user.before == "U:"
    (folder / "chat_template.jinja").write_text("J")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert find_template(folder).template == JinjaTemplate("J", {"eos_token": "</s>"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat.json", b'{"user": 3}'),
        ("chat.json", b"[]"),
        ("chat.json", b"{"),
        ("chat.jinja", b"\xff"),
        ("chat.jinja", b"x" * 300_000),
    ],
)
def test_a_damaged_template_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SegptError, match=r"chat\.j"):
        find_template(MODEL, str(path))
    with pytest.raises(SegptError, match=r"gone"):
        find_template(MODEL, str(tmp_path / "gone.json"))
    with pytest.raises(SegptError, match="chatml"):
        find_template(MODEL, "chatlm")
