"""Models of Hugging Face directories: their logits are transformers' logits, and back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.convert import agreement, hf_config, hugging_face
from segpt.errors import CheckpointError, SegptError, SpecError
from segpt.stages import check_import, import_model
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.values import Checkpoint
from tests.convert.models import FAMILIES, model_directory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow


def change(place: Path, **keys: Any) -> None:
    path = place / "config.json"
    table = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_transformers_and_the_directory_comes_back(
    family: str, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "theirs", family)
    model = check_import.import_model(source)
    assert model.about.source is not None
    measured = model.about.source.agreement
    assert measured is not None
    assert measured.largest < 2e-5
    hugging_face.write(tmp_path / "back", model.spec, model.weights, model.tokenizer, b"a template")
    before, after = (hugging_face.read(place) for place in (source, tmp_path / "back"))
    assert before.spec == after.spec
    for name, weight in before.weights.items():
        assert weight.tobytes() == after.weights[name].tobytes()
    assert after.template == b"a template"
    agreement.check(agreement.compare(after, tmp_path / "back"))


def test_a_checkpoint_of_an_import_knows_no_documents_and_keeps_the_template(
    tmp_path: Path,
) -> None:
    model = check_import.import_model(model_directory(tmp_path / "theirs", "tied"), check=False)
    import_model.save_imported(tmp_path / "out", model)
    again = read_checkpoint(tmp_path / "out")
    assert again.documents is None
    assert again.fingerprint == model.fingerprint
    assert again.about.source is not None
    assert again.about.source.unchecked == check_import.UNWANTED
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}\n"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_and_several_files_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    source = model_directory(tmp_path, "llama", dtype, max_shard_size="40KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    model = hugging_face.read(source)
    own = Checkpoint(model.spec, model.weights, model.tokenizer, 0, 1.0, None, {})
    named = hugging_face.tensors_of(own.spec, own.weights)
    assert named.keys() == theirs.keys()
    for name, weight in named.items():
        assert np.array_equal(weight, theirs[name].float().numpy())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model_type": "mamba"}, "model_type"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_scaling"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": 10**9}, "vocabulary"),
        ({"quantization_config": {}}, "quantization_config"),
    ],
)
def test_a_key_that_is_not_known_is_refused_by_name(
    keys: dict[str, Any], named: str, tmp_path: Path
) -> None:
    change(model_directory(tmp_path, "llama"), **keys)
    with pytest.raises(SpecError, match=named):
        hugging_face.read(tmp_path)


def test_a_wrong_rope_base_is_seen_by_the_comparison(tmp_path: Path) -> None:
    source = model_directory(tmp_path, "llama")
    model = hugging_face.read(source)
    change(source, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    with pytest.raises(CheckpointError, match="apart in the mean"):
        agreement.check(agreement.compare(model, source))


def test_damaged_files_are_one_error(tmp_path: Path) -> None:
    source = model_directory(tmp_path, "llama")
    place = source / "model.safetensors"
    whole = place.read_bytes()
    for damaged in (b"", whole[:7], b"\xff" * 8 + whole[8:], whole[:-4], whole[:100]):
        place.write_bytes(damaged)
        with pytest.raises(SegptError, match=r"model\.safetensors"):
            hugging_face.read(source)
    place.unlink()
    with pytest.raises(CheckpointError, match="pickles"):
        hugging_face.read(source)


def test_what_no_family_has_is_not_exported(tmp_path: Path) -> None:
    import dataclasses

    model = hugging_face.read(model_directory(tmp_path / "theirs", "llama"))
    head = dataclasses.replace(model.spec.head, softcap=30.0)
    spec = dataclasses.replace(model.spec, head=head)
    own = Checkpoint(spec, model.weights, model.tokenizer, 0, 1.0, None, {})
    with pytest.raises(SpecError, match="head of this model"):
        hugging_face.write(tmp_path / "out", own.spec, own.weights, own.tokenizer)
    assert not (tmp_path / "out").exists()


def test_plain_transformers_read_what_is_exported_in_a_fresh_process(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "theirs", "qwen3")
    model = check_import.import_model(source, check=False)
    hugging_face.write(tmp_path / "back", model.spec, model.weights, model.tokenizer)
    code = (
        "import sys, transformers as t\n"
        "a, b = (t.AutoTokenizer.from_pretrained(p) for p in sys.argv[1:])\n"
        "text = 'the cat sat on 12 mats, too'\n"
        "assert a.encode(text) == b.encode(text)\n"
        "x = [t.AutoModelForCausalLM.from_pretrained(p)(**a(text, return_tensors='pt',"
        " return_token_type_ids=False)).logits for p in sys.argv[1:]]\n"
        "assert (x[0] == x[1]).all()\n"
    )
    paths = [str(source), str(tmp_path / "back")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=120)


def test_configs_read_back_as_the_same_shape(tmp_path: Path) -> None:
    for family in FAMILIES:
        source = model_directory(tmp_path / family, family)
        shape = hf_config.shape_of_config(json.loads((source / "config.json").read_text()))
        assert hf_config.shape_of_config(hf_config.config_of(shape, 0, None)) == shape
