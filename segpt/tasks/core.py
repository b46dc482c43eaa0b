"""The CORE benchmark as data: 22 tasks, two tables of baselines, and how they add up.

CORE is the low-variance aggregate of DataComp-LM (Li et al. 2024, 2406.11794): the plain mean,
over 22 in-context tasks, of the accuracy above chance as a share of what chance leaves.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, get_args

from segpt.config.base import nearest, spec
from segpt.errors import SpecError

Baselines = Literal["v1", "v2"]
Form = Literal["multiple_choice", "schema", "language_modeling"]

BASELINES: tuple[Baselines, ...] = get_args(Baselines)


@spec
class Task:
    """One task: which items it asks, in which form, and what guessing gets.

    Attributes:
        shots: solved items before the one that is asked.
        delimiter: what stands between a question and its answer.
        path: of the file below ``eval_data``.
        items: in the original file.
        v1: accuracy of guessing in percent, by the table that came first.
        v2: the same, as corrected in 2025.
        sha256: of the original file, where known.
        blob: its Git object id, where that is what is known.
    """

    label: str
    form: Form
    shots: int
    delimiter: str = " "
    path: str
    items: int
    v1: float
    v2: float
    sha256: str = ""
    blob: str = ""

    def baseline(self, table: Baselines) -> float:
        """The accuracy of guessing, in percent."""
        return self.v1 if table == "v1" else self.v2


@spec
class MultipleChoice:
    """A question, and choices of which number ``gold`` is right."""

    query: str
    choices: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        _check_gold("choices", self.choices, self.gold)


@spec
class Schema:
    """Contexts, of which number ``gold`` is the one that the continuation belongs to."""

    context_options: tuple[str, ...]
    continuation: str
    gold: int

    def __post_init__(self) -> None:
        _check_gold("context_options", self.context_options, self.gold)


@spec
class LanguageModeling:
    """A context, and the one continuation of it that counts."""

    context: str
    continuation: str


Item = MultipleChoice | Schema | LanguageModeling

ITEM_OF: Mapping[Form, type[MultipleChoice] | type[Schema] | type[LanguageModeling]] = {
    "multiple_choice": MultipleChoice,
    "schema": Schema,
    "language_modeling": LanguageModeling,
}


def _check_gold(name: str, options: Collection[str], gold: int) -> None:
    if len(options) < 2 or not 0 <= gold < len(options):
        raise SpecError(f"gold is {gold}, with {len(options)} {name}")


def task(label: str) -> Task:
    """The task of that label.

    Raises:
        SpecError: if there is none, naming the nearest.
    """
    if label not in BY_LABEL:
        raise SpecError(f"CORE has no task {label!r}; {nearest(label, BY_LABEL)}")
    return BY_LABEL[label]


def centred(accuracy: float, baseline: float) -> float:
    """0 for guessing and 1 for always being right; ``baseline`` is in percent."""
    chance = baseline / 100
    return (accuracy - chance) / (1 - chance)


def standard_error(accuracy: float, baseline: float, items: int) -> float:
    """Of a centred accuracy, were the items a sample of many more like them."""
    return math.sqrt(accuracy * (1 - accuracy) / items) / (1 - baseline / 100)


def core(accuracies: Mapping[str, float], table: Baselines) -> float:
    """CORE from the accuracy of each of the 22 tasks.

    Raises:
        SpecError: if a task is missing or unknown; the mean of some tasks is not CORE.
    """
    for label in accuracies:
        task(label)
    if missing := [label for label in BY_LABEL if label not in accuracies]:
        raise SpecError(
            f"CORE needs all {len(TASKS)} tasks, and {', '.join(missing)} did not run; the mean "
            "of the others is not CORE"
        )
    values = [centred(accuracies[t.label], t.baseline(table)) for t in TASKS]
    return math.fsum(values) / len(TASKS)


def combined(errors: Iterable[float]) -> float:
    """The standard error of the mean of values that err independently.

    The two HellaSwag tasks ask the same items and do not; they are large, so that it hardly shows.
    """
    every = list(errors)
    return math.sqrt(math.fsum(error**2 for error in every)) / len(every)


TASKS = (
    Task(
        label="hellaswag_zeroshot",
        form="multiple_choice",
        shots=0,
        path="language_understanding/hellaswag.jsonl",
        items=10_042,
        v1=25,
        v2=25,
        blob="448321079fdc140bd8566b16b24eda9ceacd3501",
    ),
    Task(
        label="jeopardy",
        form="language_modeling",
        shots=10,
        delimiter="\nAnswer: ",
        path="world_knowledge/jeopardy_all.jsonl",
        items=2_117,
        v1=0,
        v2=0,
        sha256="187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e",
    ),
    Task(
        label="bigbench_qa_wikidata",
        form="language_modeling",
        shots=10,
        path="world_knowledge/bigbench_qa_wikidata.jsonl",
        items=20_321,
        v1=0,
        v2=0,
        sha256="bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265",
    ),
    Task(
        label="arc_easy",
        form="multiple_choice",
        shots=10,
        delimiter="\nAnswer: ",
        path="world_knowledge/arc_easy.jsonl",
        items=2_376,
        v1=25,
        v2=25,
        sha256="d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5",
    ),
    Task(
        label="arc_challenge",
        form="multiple_choice",
        shots=10,
        delimiter="\nAnswer: ",
        path="world_knowledge/arc_challenge.jsonl",
        items=1_172,
        v1=25,
        v2=25,
        sha256="1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636",
    ),
    Task(
        label="copa",
        form="multiple_choice",
        shots=0,
        path="commonsense_reasoning/copa.jsonl",
        items=100,
        v1=50,
        v2=50,
        sha256="595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846",
    ),
    Task(
        label="commonsense_qa",
        form="multiple_choice",
        shots=10,
        path="commonsense_reasoning/commonsense_qa.jsonl",
        items=1_221,
        v1=20,
        v2=40.3,
        sha256="2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a",
    ),
    Task(
        label="piqa",
        form="multiple_choice",
        shots=10,
        delimiter="\nAnswer: ",
        path="commonsense_reasoning/piqa.jsonl",
        items=1_838,
        v1=50,
        v2=50,
        sha256="d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
    ),
    Task(
        label="openbook_qa",
        form="multiple_choice",
        shots=0,
        path="commonsense_reasoning/openbook_qa.jsonl",
        items=500,
        v1=25,
        v2=25,
        sha256="adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09",
    ),
    Task(
        label="lambada_openai",
        form="language_modeling",
        shots=0,
        path="language_understanding/lambada_openai.jsonl",
        items=5_153,
        v1=0,
        v2=0,
        sha256="411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
    ),
    Task(
        label="hellaswag",
        form="multiple_choice",
        shots=10,
        path="language_understanding/hellaswag.jsonl",
        items=10_042,
        v1=25,
        v2=25,
        blob="448321079fdc140bd8566b16b24eda9ceacd3501",
    ),
    Task(
        label="winograd",
        form="schema",
        shots=0,
        path="language_understanding/winograd_wsc.jsonl",
        items=273,
        v1=50,
        v2=50,
        sha256="746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
    ),
    Task(
        label="winogrande",
        form="schema",
        shots=0,
        path="language_understanding/winogrande.jsonl",
        items=1_267,
        v1=50,
        v2=50,
        sha256="ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
    ),
    Task(
        label="bigbench_dyck_languages",
        form="language_modeling",
        shots=10,
        path="symbolic_problem_solving/bigbench_dyck_languages.jsonl",
        items=1_000,
        v1=0,
        v2=0,
        sha256="106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5",
    ),
    Task(
        label="agi_eval_lsat_ar",
        form="multiple_choice",
        shots=3,
        path="symbolic_problem_solving/agi_eval_lsat_ar.jsonl",
        items=230,
        v1=20,
        v2=25,
        sha256="9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56",
    ),
    Task(
        label="bigbench_cs_algorithms",
        form="language_modeling",
        shots=10,
        path="symbolic_problem_solving/bigbench_cs_algorithms.jsonl",
        items=1_320,
        v1=0,
        v2=0,
        sha256="8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a",
    ),
    Task(
        label="bigbench_operators",
        form="language_modeling",
        shots=10,
        path="symbolic_problem_solving/bigbench_operators.jsonl",
        items=210,
        v1=0,
        v2=0,
        sha256="41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f",
    ),
    Task(
        label="bigbench_repeat_copy_logic",
        form="language_modeling",
        shots=10,
        path="symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl",
        items=32,
        v1=0,
        v2=0,
        sha256="8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767",
    ),
    Task(
        label="squad",
        form="language_modeling",
        shots=10,
        path="reading_comprehension/squad.jsonl",
        items=10_570,
        v1=0,
        v2=0,
        blob="dc733b8f58ec666c53fd946198c434b819a00680",
    ),
    Task(
        label="coqa",
        form="language_modeling",
        shots=0,
        path="reading_comprehension/coqa.jsonl",
        items=7_983,
        v1=0,
        v2=0,
        sha256="0c2b8029776a138f755d065b9506eb8e91bbd38c44dce321a75f9987bb7875aa",
    ),
    Task(
        label="boolq",
        form="multiple_choice",
        shots=10,
        delimiter="\nAnswer: ",
        path="reading_comprehension/boolq.jsonl",
        items=3_270,
        v1=62,
        v2=62,
        sha256="454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8",
    ),
    Task(
        label="bigbench_language_identification",
        form="multiple_choice",
        shots=10,
        path="language_understanding/bigbench_language_identification.jsonl",
        items=10_000,
        v1=9.1,
        v2=25,
        sha256="80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e",
    ),
)

BY_LABEL = {t.label: t for t in TASKS}
