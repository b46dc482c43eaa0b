"""How the messages of a conversation are written for a model, as data that runs nothing."""

from segpt.errors import SpecError

from .base import spec

LONGEST_MARKER = 1_000  # characters


@spec
class RoleMarkers:
    """What stands before and after each message of a role: special tokens, text or both."""

    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if max(len(self.before), len(self.after)) > LONGEST_MARKER:
            raise SpecError(f"a marker has at most {LONGEST_MARKER:,} characters")


@spec
class MarkerTemplate:
    """A conversation as a document: its start token, then each message between its markers.

    ``system`` may be null: what the system says then stands before the first message of the user,
    with an empty line between. The model's answer ends where the model begins another document, or
    writes one of ``stop``: a special token of the tokenizer, or else a text.
    """

    user: RoleMarkers
    assistant: RoleMarkers
    system: RoleMarkers | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise SpecError("an empty stop would end every answer before it begins")
        if len(self.stop) > 16 or max(map(len, self.stop), default=0) > LONGEST_MARKER:
            raise SpecError(f"at most 16 stops, each of at most {LONGEST_MARKER:,} characters")


CHATML = MarkerTemplate(
    system=RoleMarkers(before="<|im_start|>system\n", after="<|im_end|>\n"),
    user=RoleMarkers(before="<|im_start|>user\n", after="<|im_end|>\n"),
    assistant=RoleMarkers(before="<|im_start|>assistant\n", after="<|im_end|>\n"),
    stop=("<|im_end|>", "<|endoftext|>"),
)
TURNS = MarkerTemplate(
    user=RoleMarkers(before="<|user_start|>", after="<|user_end|>"),
    assistant=RoleMarkers(before="<|assistant_start|>", after="<|assistant_end|>"),
    stop=("<|assistant_end|>", "<|endoftext|>"),
)
INSTRUCTION = MarkerTemplate(
    system=RoleMarkers(before="", after="\n\n"),
    user=RoleMarkers(before="### Instruction:\n", after="\n\n"),
    assistant=RoleMarkers(before="### Response:\n", after="\n\n"),
    stop=("\n\n### Instruction:", "<|endoftext|>"),
)
PLAIN = MarkerTemplate(
    system=RoleMarkers(after="\n"), user=RoleMarkers(), assistant=RoleMarkers(after="\n")
)

TEMPLATES = {"chatml": CHATML, "turns": TURNS, "instruction": INSTRUCTION, "plain": PLAIN}
