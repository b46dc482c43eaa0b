"""A model as source of its own gives the logits of the core, where segpt cannot be imported."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from segpt.config.recipe import read_recipe
from segpt.convert.modeling import rules
from segpt.convert.modeling.source import ROOT, sources
from segpt.convert.modeling.tokens import folder
from segpt.convert.modeling.write import write_modeling
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.errors import SegptError
from segpt.model.build import build
from segpt.model.params import weights

pytestmark = pytest.mark.slow

LOADED = """
import sys
sys.modules["segpt"] = None
import numpy as np, torch
from transformers import AutoModelForCausalLM
place, data = sys.argv[1:]
stored = np.load(data)
ids, expected = torch.tensor(stored["ids"]), torch.tensor(stored["logits"])
model, about = AutoModelForCausalLM.from_pretrained(
    place, trust_remote_code=True, output_loading_info=True
)
assert not any(about.values()) and not list(model.buffers())
past, parts = None, []
with torch.no_grad():
    logits = model(ids).logits
    for part in ids.split([7, 1, 1, ids.size(1) - 9], 1):
        step = model(part, past_key_values=past, use_cache=True)
        past = step.past_key_values
        parts.append(step.logits)
assert (logits - expected).abs().max() < 1e-5
assert (torch.cat(parts, 1) - expected).abs().max() < 1e-5
written = model.generate(ids[:, :9], max_new_tokens=5, do_sample=False, eos_token_id=None)
with torch.no_grad():
    assert torch.equal(model(written).logits.argmax(-1)[:, 8:-1], written[:, 9:])
model.train()
model(ids, labels=ids).loss.backward()
assert all(p.grad is not None for p in model.parameters())
mask = torch.ones_like(ids)
mask[0, 0] = 0
try:
    model(ids, attention_mask=mask)
except ValueError as error:
    assert "padding" in str(error)
else:
    raise AssertionError("padding before tokens passed")
print("same")
"""


@pytest.mark.parametrize("recipe", ["demo", "frontier-small", "daisy-small"])
def test_logits_are_those_of_the_core_without_segpt(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    spec = read_recipe(recipe).model
    torch.manual_seed(0)
    model = build(spec).eval()
    with torch.no_grad():
        for weight in weights(model):
            weight.tensor.normal_(0.3, 0.3) if weight.tensor.dim() == 1 else (
                weight.tensor.normal_(0, weight.tensor.size(-1) ** -0.5)
            )
        ids = torch.randint(0, spec.vocab, (2, 24))
        ids[:, 0] = ids[0, 12] = spec.start or 0
        logits = model(ids)
    arrays = {w.name: w.tensor.detach().numpy() for w in weights(model)}
    write_modeling(spec, arrays, BYTES, tmp_path / "model")
    np.savez(tmp_path / "data.npz", ids=ids.numpy(), logits=logits.numpy())
    command = [sys.executable, "-I", "-c", LOADED, str(tmp_path / "model")]
    done = subprocess.run(
        [*command, str(tmp_path / "data.npz")],
        capture_output=True,
        text=True,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HOME": str(tmp_path)},
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_every_text_that_is_changed_occurs_in_the_core() -> None:
    for module, part in rules.MODEL.items():
        tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
        occurring = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.expr | ast.stmt)}
        absent = [about[module] for about in rules.ABSENT.values() if module in about]
        for about in (part, *absent):
            missing = {*about.texts, *about.facts} - occurring
            assert not missing, f"{module} no longer says {missing}"


def test_source_keeps_what_a_model_uses_and_drops_the_rest() -> None:
    spec = read_recipe("demo").model
    modeling = sources(spec).modeling
    assert "class Attention" in modeling
    assert "class FastWeight" not in modeling
    assert "segpt." not in "\n".join(
        line for line in modeling.splitlines() if line.startswith(("import", "from"))
    )


@pytest.mark.parametrize("kind", ["bytes", "merges"])
def test_tokenizers_give_the_same_ids(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    tokenizer = BYTES if kind == "bytes" else train_bpe([text.encode()], 600)
    for name, data in folder(tokenizer).items():
        (tmp_path / name).write_bytes(data)
    codec, theirs = load(tokenizer), library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    odd = ["<s> a", "\u2581x \u2581", "   a    b\n\n\n", "-----------", "naïve 日本 \0 <0x41>", ""]
    for document in [*odd, *text.split("\n\n"), text]:
        expected = codec.encode(document.encode()).tolist()
        assert theirs.encode(document).ids == [codec.start, *expected]
        assert theirs.decode(expected) == document


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    spec = read_recipe("demo").model
    with pytest.raises(SegptError, match="weight"):
        write_modeling(spec, {}, BYTES, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_config_says_whose_directory_it_is(tmp_path: Path) -> None:
    spec = read_recipe("demo").model
    model = build(spec)
    arrays = {w.name: np.zeros(tuple(w.tensor.shape), np.float32) for w in weights(model)}
    for _ in range(2):  # its own directory may be replaced
        write_modeling(spec, arrays, BYTES, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "segpt"
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SegptError, match="other things"):
        write_modeling(spec, arrays, BYTES, tmp_path / "model")
