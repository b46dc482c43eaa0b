"""Every kind of contradiction in a submission is found, and a sound one has none."""

import base64
import bz2
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from segpt.contest.check import check
from segpt.contest.imports import absent
from segpt.contest.logs import read
from segpt.contest.margin import comparisons
from segpt.contest.submission_folder import Contradiction, Folder, Previous, agree, decimals

TODAY = date(2026, 5, 1)
RATIO = 1.0 / 3.7266 / 0.6931471805599453  # bits per byte of a nat per token
SCRIPT = "import numpy\nimport torch\n" + "#" * 29_972
LOSSES = {42: 2.78954012, 314: 2.78921177, 999: 2.78871234}
SIZES = {42: 15_950_111, 314: 15_951_222, 999: 15_949_333}

LOG = """\
Hyperparameters:
  max_wallclock_seconds: 600.0
  run_id: run-{seed}
  seed: {seed}
  vocab_size: 8192
train_shards: 80
val_tokens: 40540160
model_params:35945671
1/20000 train_loss: 9.0087 train_time: 0.0m tok/s: 12535509
4000/20000 val_loss: 2.9000 val_bpb: {early:.4f}
4900/20000 val_loss: 2.8000 val_bpb: {late:.4f}
stopping_early: wallclock_cap train_time: 588100ms step: 4900/20000
GPTQ:collecting Hessians from calibration data...
GPTQ:collected 67 Hessians in 3.5s
pre-quantization post-ema val_loss:2.79000000 val_bpb:{raw:.8f} eval_time:7779ms
Serialized model quantized+brotli: {model} bytes
Code size: {code} bytes
Total submission size quantized+brotli: {total} bytes
quantized_ttt val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:419546ms
total_eval_time:420.1s
"""


def bpb(loss: float) -> float:
    return round(loss * RATIO, 8)


@dataclass
class Made:
    """A submission that a test can spoil."""

    about: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def folder(self) -> Folder:
        texts = {"submission.json": json.dumps(self.about), **self.files}
        sizes = {name: len(text.encode()) for name, text in texts.items()}
        return Folder(sizes | self.sizes, texts)

    def replace(self, name: str, old: str, new: str) -> None:
        assert old in self.files[name], (name, old)
        self.files[name] = self.files[name].replace(old, new)

    def found(self, against: Previous | None = None) -> list[Contradiction]:
        return check(self.folder(), TODAY, against)


@pytest.fixture
def made() -> Made:
    results = {
        str(seed): {"val_loss": loss, "val_bpb": bpb(loss), "artifact_bytes": SIZES[seed]}
        for seed, loss in LOSSES.items()
    }
    values = [bpb(loss) for loss in LOSSES.values()]
    mean = sum(values) / 3
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    about = {
        "author": "Ada",
        "github_id": "ada",
        "name": "A model",
        "date": "2026-04-30",
        "val_loss": round(sum(LOSSES.values()) / 3, 8),
        "val_bpb": round(mean, 8),
        "val_bpb_std": round(spread, 8),
        "seeds": list(LOSSES),
        "seed_results": results,
        "bytes_total": max(SIZES.values()),
        "bytes_code": len(SCRIPT),
    }
    logs = {
        f"train_seed{seed}.log": LOG.format(
            seed=seed,
            early=2.9 * RATIO,
            late=2.8 * RATIO,
            raw=2.79 * RATIO,
            model=SIZES[seed] - len(SCRIPT),
            code=len(SCRIPT),
            total=SIZES[seed],
            loss=loss,
            bpb=bpb(loss),
        )
        for seed, loss in LOSSES.items()
    }
    rows = "\n".join(
        f"| {seed} | 4,900 | **{bpb(loss):.5f}** | {SIZES[seed]:,} |"
        for seed, loss in LOSSES.items()
    )
    page = (
        f"# A model\n\n**val_bpb: {mean:.4f}** (3-seed mean)\n\n"
        f"| Seed | Steps | BPB | Artifact |\n|---|---|---|---|\n{rows}\n"
        f"| **Mean** | | **{mean:.5f}** | |\n"
    )
    return Made(about, {"README.md": page, "train_gpt.py": SCRIPT, **logs})


def test_a_sound_submission_has_none(made: Made) -> None:
    assert made.found() == []
    assert made.found(Previous("1.0900", (1.09,))) == []


Spoil = Callable[[Made], None]
A, B, C = (f"train_seed{seed}.log" for seed in LOSSES)


def over_the_cap(made: Made) -> None:
    for name in (A, B, C):
        made.replace(name, "Total submission size quantized+brotli: 159", "Total size: 160")


def claims_over_the_cap(made: Made) -> None:
    made.about["bytes_total"] = 16_000_001


def size_in_no_log(made: Made) -> None:
    made.about["seed_results"]["314"]["artifact_bytes"] = 15_910_554


def model_without_its_code(made: Made) -> None:
    made.about["seed_results"]["314"]["artifact_bytes"] = SIZES[314] - len(SCRIPT)


def one_size_for_all(made: Made) -> None:
    for result in made.about["seed_results"].values():
        result["artifact_bytes"] = SIZES[42]


def one_figure_for_two(made: Made) -> None:
    made.about["seed_results"]["314"]["val_bpb"] = bpb(LOSSES[42])


def readme_figure(made: Made) -> None:
    made.replace("README.md", f"{bpb(LOSSES[314]):.5f}", f"{bpb(LOSSES[314]) + 0.0004:.5f}")


def readme_size(made: Made) -> None:
    made.replace("README.md", f"{SIZES[999]:,}", f"{SIZES[42]:,}")


def readme_heading(made: Made) -> None:
    made.replace("README.md", "**val_bpb: 1.07", "**val_bpb: 1.05")


def readme_mean(made: Made) -> None:
    mean = made.about["val_bpb"]
    made.replace(
        "README.md", f"| **Mean** | | **{mean:.5f}**", f"| **Mean** | | **{mean + 1e-4:.5f}**"
    )


def wrong_mean(made: Made) -> None:
    made.about["val_bpb"] -= 0.0002


def best_seed_as_mean(made: Made) -> None:
    made.about["val_bpb"] = bpb(LOSSES[999])


def wrong_spread(made: Made) -> None:
    made.about["val_bpb_std"] /= 2


def lone_log(made: Made) -> None:
    del made.files[B], made.files[C], made.about["seed_results"]
    made.about |= {"seeds": [42], "val_bpb": 1.0502, "val_loss": 1.0502 / RATIO}


def seed_without_log(made: Made) -> None:
    del made.files[B]


def no_log_at_all(made: Made) -> None:
    for name in (A, B, C):
        del made.files[name]


def figure_in_no_log(made: Made) -> None:
    result = made.about["seed_results"]["42"]
    result |= {"val_bpb": result["val_bpb"] - 0.001, "val_loss": result["val_loss"] * 0.999}


def before_quantization(made: Made) -> None:
    made.about["seed_results"]["42"] |= {"val_loss": 2.79, "val_bpb": round(2.79 * RATIO, 8)}


def another_seed(made: Made) -> None:
    made.replace(A, "seed: 42", "seed: 1337")


def two_headers(made: Made) -> None:
    made.files[A] += "Hyperparameters:\n  seed: 42\n"


def steps_go_back(made: Made) -> None:
    made.files[A] += "12/20000 train_loss: 7.0087 train_time: 0.1m\n"


def two_settings(made: Made) -> None:
    made.files[A] += "  run_id: run-43\n"


def evaluated_elsewhere(made: Made) -> None:
    last = f"quantized_ttt val_loss:{LOSSES[42]:.8f} val_bpb:{bpb(LOSSES[42]):.8f}"
    made.replace(A, last, "quantized val_loss:2.79123456 val_bpb:" + f"{bpb(2.79123456):.8f}")
    made.files["logs/ttt_seed42.log"] = last + " eval_time:419546ms\n"


def other_shards(made: Made) -> None:
    made.replace(B, "train_shards: 80", "train_shards: 39")


def other_targets(made: Made) -> None:
    made.replace(B, "val_tokens: 40540160", "val_tokens: 40000000")


def other_script(made: Made) -> None:
    made.replace(B, f"Code size: {len(SCRIPT)}", f"Code size: {len(SCRIPT) - 40}")


def denominator_of_log(made: Made) -> None:
    loss = LOSSES[42]
    made.replace(A, f"val_loss:{loss:.8f}", f"val_loss:{loss * 1.0413:.8f}")


def denominator_of_claim(made: Made) -> None:
    made.about["seed_results"]["42"]["val_loss"] *= 1.0895


def trained_too_long(made: Made) -> None:
    made.replace(A, "train_time: 588100ms", "train_time: 612345ms")


def calibrated_after_the_stop(made: Made) -> None:
    made.replace(A, "train_time: 588100ms", "train_time: 599600ms")


def evaluated_too_long(made: Made) -> None:
    made.replace(A, "total_eval_time:420.1s", "total_eval_time:642.5s")


def claims_to_evaluate_too_long(made: Made) -> None:
    made.about["seed_results"]["42"]["eval_time_s"] = 700.5


def no_metadata(made: Made) -> None:
    made.sizes["submission.json"] = 0


def best_of_disclosed(made: Made) -> None:
    everything = {str(seed): bpb(loss) for seed, loss in LOSSES.items()}
    made.about["all_runs"] = everything | {"7": 1.0812345, "8": 1.0812346}


def best_of_logs(made: Made) -> None:
    text = (
        made.files[A].replace("seed: 42", "seed: 7").replace(f"{bpb(LOSSES[42]):.8f}", "1.08123450")
    )
    made.files["train_seed7.log"] = text.replace(f"{LOSSES[42]:.8f}", f"{1.0812345 / RATIO:.8f}")


def best_of_words(made: Made) -> None:
    made.files["README.md"] += "\nThe best 3 of 7 seeds count.\n"


def helper(made: Made) -> None:
    made.sizes["fused_kernel.cpp"] = 18_406


def tokenizer(made: Made) -> None:
    made.sizes["tokenizers/bpe.model"] = 366_510


def code_of_claim(made: Made) -> None:
    made.about["bytes_code"] = 12_345


def future(made: Made) -> None:
    made.about["date"] = "2026-05-02"


def no_day(made: Made) -> None:
    made.about["date"] = "yesterday"


def needs_more(made: Made) -> None:
    made.replace("train_gpt.py", "import numpy\n", "import brotli\n")


def total_below_its_seeds(made: Made) -> None:
    made.about["bytes_total"] = min(SIZES.values())


@pytest.mark.parametrize(
    ("spoil", "kind", "file", "told"),
    [
        (over_the_cap, "cap", A, "16,050,111 bytes, 50,111 over the cap"),
        (claims_over_the_cap, "cap", "submission.json", "1 over the cap"),
        (
            size_in_no_log,
            "bytes",
            "submission.json",
            "15,910,554 bytes, and train_seed314.log says",
        ),
        (model_without_its_code, "bytes", "submission.json", "15,951,222, with the code"),
        (one_size_for_all, "copied", "submission.json", "all 3 seeds claim 15,950,111"),
        (one_figure_for_two, "copied", "submission.json", "seeds 42 and 314 both claim"),
        (readme_figure, "readme", "README.md", "seed 314, bpb: "),
        (readme_size, "readme", "README.md", "15,950,111, and train_seed999.log has 15,949,333"),
        (readme_heading, "readme", "README.md", "its heading says 1.05"),
        (readme_mean, "readme", "README.md", "the mean is said to be"),
        (wrong_mean, "mean", "submission.json", "its seeds give 1.0797"),
        (best_seed_as_mean, "mean", "submission.json", "of one seed, and their mean is 1.0797"),
        (wrong_spread, "std", "submission.json", "its seeds give 0.000"),
        (lone_log, "lone-log", "submission.json", "claims 1.0502 BPB, which is not in"),
        (seed_without_log, "no-log", "submission.json", "seed 314 has no log"),
        (no_log_at_all, "missing", "*.log", "no log of any run"),
        (figure_in_no_log, "bpb", "submission.json", "which is not in train_seed42.log; its last"),
        (before_quantization, "unquantized", "submission.json", "only from before quantization"),
        (another_seed, "seed", A, "is called seed 42, and was run with seed 1337"),
        (two_headers, "composite", A, "the headers of 2 runs"),
        (steps_go_back, "composite", A, "step 12 comes after step 4,900"),
        (two_settings, "composite", A, "run_id is run-42 and run-43"),
        (evaluated_elsewhere, "composite", "logs/ttt_seed42.log", "ends at"),
        (other_shards, "shards", B, "39 training shards, and train_seed42.log has 80"),
        (other_targets, "targets", B, "40,000,000 validation tokens"),
        (other_script, "code", B, f"{len(SCRIPT) - 40:,} bytes of code, and"),
        (denominator_of_log, "denominator", A, "bytes per token, where it is 3.72"),
        (denominator_of_claim, "denominator", "submission.json", "bytes per token, where it is"),
        (trained_too_long, "train-time", A, "trains for 612.345 s, where 600 s"),
        (calibrated_after_the_stop, "after-stop", A, "599.6 s and 3.5 s are 603.1 s"),
        (evaluated_too_long, "eval-time", A, "642.5 s, where 600 s"),
        (claims_to_evaluate_too_long, "eval-time", "submission.json", "700.500 s, where 600 s"),
        (best_of_disclosed, "best-of", "submission.json", "counts 3 of 5 seeds, the better ones"),
        (best_of_logs, "best-of", "submission.json", "left out: 7: 1.0812345"),
        (best_of_words, "best-of", "README.md", "the best 3 of 7 runs"),
        (helper, "uncounted", "fused_kernel.cpp", "18,406 bytes beside"),
        (tokenizer, "uncounted", "tokenizers/bpe.model", "366,510 bytes beside"),
        (code_of_claim, "code", "train_gpt.py", "submission.json counts 12,345 bytes of code"),
        (future, "date", "submission.json", "is of 2026-05-02, and today is 2026-05-01"),
        (no_day, "date", "submission.json", "'yesterday' is no day"),
        (needs_more, "requirements", "requirements.txt", "imports brotli, which"),
        (total_below_its_seeds, "total", "submission.json", "its largest seed takes 15,951,222"),
    ],
)
def test_every_kind_is_found(made: Made, spoil: Spoil, kind: str, file: str, told: str) -> None:
    spoil(made)
    found = made.found()
    assert any(one.kind == kind and one.file == file and told in one.text for one in found), found


def test_missing_metadata_is_found_and_what_is_there_instead(made: Made) -> None:
    whole = made.folder()
    renamed = {"submission.json": "submission_final.json", "train_gpt.py": "train_gpt_v5.py"}
    moved = Folder(
        {renamed.get(n, n): size for n, size in whole.sizes.items()},
        {renamed.get(n, n): text for n, text in whole.texts.items()},
    )
    found = check(moved, TODAY)
    assert [(one.kind, one.file) for one in found] == [
        ("missing", "submission.json"),
        ("missing", "train_gpt.py"),
    ]
    assert "submission_final.json is there instead" in found[0].text
    broken = Folder(whole.sizes, {**whole.texts, "submission.json": "{"})
    assert any("not valid JSON" in one.text for one in check(broken, TODAY))


def test_a_margin_that_is_too_small_is_told_in_both_units(made: Made) -> None:
    found = made.found(Previous("1.0806", (1.0806,)))
    assert [one.kind for one in found] == ["margin", "significance"]
    assert "(0.005 nats) are asked for" in found[0].text
    assert "0.00194 BPB" in found[0].text
    assert "one-sample t" in found[1].text


def test_runs_of_a_previous_record_are_tested_with_welch(made: Made) -> None:
    before = Previous("previous", (1.0902, 1.0893, 1.0788))
    found = made.found(before)
    assert any(one.text.startswith("Welch's t") for one in found if one.kind == "significance")
    close = Previous("previous", (1.0902, 1.0903, 1.0904))
    assert made.found(close) == []


def test_a_claimed_p_is_computed_again(made: Made) -> None:
    made.about["p_value"] = "<0.001"
    made.files["README.md"] += "\nBetter with p = 0.0005.\n"
    found = made.found(Previous("1.0806", (1.0806,)))
    files = {one.file for one in found if "claims p" in one.text}
    assert files == {"README.md", "submission.json"}


def test_the_test_against_a_figure_is_the_one_sample_t_test() -> None:
    """Computed by hand: mean 1, standard error sqrt(1/3), t = (1 - 3) / 0.57735."""
    test = comparisons([3.0], [0.0, 1.0, 2.0])["one-sample t"]
    assert test is not None
    assert test.t == pytest.approx(-2 * 3**0.5)
    assert test.p_better == pytest.approx(0.0370899, abs=1e-6)


@pytest.mark.parametrize("line", ["seed:1337", "  seed: 1337", "seed=1337", '  "seed": 1337,'])
def test_seeds_are_read_in_many_forms(line: str) -> None:
    assert read("train.log", f"{line}\n    seed = 3\nseed = int(x)\n").seeds == (1337,)


@pytest.mark.parametrize(
    ("line", "total"),
    [
        ("Total submission size int8+zlib: 15,132,832 bytes", 15_132_832),
        ("Total submission size: 15132832 bytes", 15_132_832),
        ("budget:15132832/16000000 (15.13/16.00MB) FITS", 15_132_832),
        ("bytes_total: 15132832", 15_132_832),
        ("total = artifact_bytes + code_bytes", None),
        ("total_bytes = 0.0", None),
    ],
)
def test_sizes_are_read_in_many_forms(line: str, total: int | None) -> None:
    assert read("train.log", line).total == total


@pytest.mark.parametrize(
    ("line", "bpb", "final"),
    [
        ("final_int8_roundtrip_exact val_loss:1.9 val_bpb:1.16660881", "1.16660881", True),
        ("ttt_sliding:done val_loss=2.795171 val_bpb=1.082098 elapsed=293.2s", "1.082098", True),
        ("step:500/1000 val_loss:2.9692 val_bpb:1.1497 train_time:3ms", "1.1497", False),
        ("DIAGNOSTIC post_ema val_loss:1.8937 val_bpb:1.1216", "1.1216", False),
    ],
)
def test_figures_are_read_in_many_forms(line: str, bpb: str, final: bool) -> None:
    (figure,) = read("train.log", line).figures
    assert (str(figure.bpb), figure.final) == (bpb, final)


def test_lines_of_progress_are_no_figures() -> None:
    text = "ttt_chunk [1/1238] bpb=1.120040 time=3.8s\nttp: b728/782 bl:2.3616 bb:1.0812\n"
    log = read("train.log", text)
    assert (log.figures, log.decimals) == ((), ())


def test_calibration_on_text_of_its_own_is_allowed_after_the_stop() -> None:
    text = "stopping_early: train_time: 599900ms\ngptq:collected hessians (AR self-gen) in 9.0s\n"
    assert read("train.log", text).calibration is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1.0822", "1.08217956", True),  # rounded
        ("1.0821", "1.08217956", True),  # cut off
        ("1.0823", "1.08217956", False),
        ("1.0822", "1.0821", False),
    ],
)
def test_numbers_agree_as_far_as_they_are_written(a: str, b: str, same: bool) -> None:
    assert agree(Decimal(a), Decimal(b)) is same
    assert decimals(Decimal(b)) == len(b) - 2


@pytest.mark.parametrize("module", [lzma, bz2])
def test_imports_of_a_compressed_script_are_seen(module: Any) -> None:
    source = "import brotli, json\ntry:\n    import flash_attn\nexcept ImportError:\n    pass\n"
    source += "".join(f"x{i} = {i * i}\n" for i in range(400))
    payload = base64.b85encode(module.compress(source.encode())).decode()
    name = module.__name__
    script = f"import {name}, base64\nexec({name}.decompress(base64.b85decode({payload!r})))\n"
    assert absent(script, "") == ["brotli"]
    assert absent(script, "# brotli is needed\nBrotli>=1.1\n") == []
