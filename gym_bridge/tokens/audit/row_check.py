"""The checks of one row, of whatever kind: they give its training sequences and tell what is wrong with it."""

import math
from collections.abc import Sequence
from pathlib import Path

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import RolloutView, view_row
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.nemo_rl_rows import NO_AGENT, RowKind, row_problems
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.tokens import Segment, TurnTokens
from gym_bridge.tokens.audit.findings import Findings, Overlap
from gym_bridge.tokens.audit.kinds import READERS, Conversation, Example, read_rollout, read_task
from gym_bridge.tokens.audit.leaks import leaked_answer
from gym_bridge.tokens.audit.overlap import OverlapCheck
from gym_bridge.tokens.audit.pairing import unpaired_item, unpaired_message
from gym_bridge.tokens.audit.settings import AuditSettings
from gym_bridge.tokens.audit.templates import RoleCheck, TrainedChats, rendered_segment
from gym_bridge.tokens.audit.token_ids import TokenCheck, trajectory_segments
from gym_bridge.tokens.renderers import Renderer


class RowCheck:
    """Checks the rows of one file."""

    def __init__(self, path: Path, renderer: Renderer, settings: AuditSettings, findings: Findings):
        self.num_segments = 0
        """Sequences that the rollouts with token ids made."""
        self._renderer, self._settings, self._findings = renderer, settings, findings
        self._roles, self._chats = RoleCheck(renderer), TrainedChats(renderer)
        self._tokens = TokenCheck(path, renderer)
        self._overlaps = OverlapCheck(settings.against, ngram=settings.ngram)

    def segments(self, line: int, row: Row, kind: str) -> tuple[Segment, ...]:
        """Training sequences of a row, or the prompt of a task; empty where it has none. What is wrong goes to the findings."""
        return self._dataset_row(line, row, kind) if kind in READERS else self._gym_row(line, row, kind)

    def overlaps(self) -> list[Overlap]:
        """What was found of each evaluation file."""
        return self._overlaps.summary()

    def _dataset_row(self, line: int, row: Row, kind: str) -> tuple[Segment, ...]:
        try:
            example = READERS[kind](row)
        except DataError as error:
            self._findings.add(line, "columns", str(error))
            return ()
        self._check_texts(line, row, example)
        if kind == "sft":
            self._check_last_role(line, example.conversations[0])
        chat = row if kind == "sft" else None
        return tuple(segment for one in example.conversations for segment in self._rendered(line, one, chat))

    def _check_last_role(self, line: int, conversation: Conversation) -> None:
        """NeMo RL's openai_format refuses another one."""
        roles = [one["role"] for one in conversation.messages]
        if "assistant" in roles and roles[-1] != "assistant" and not unpaired_message(conversation.messages):
            self._findings.add(line, "roles", f"the last message is of role {roles[-1]!r}; nothing answers it")

    def _rendered(self, line: int, conversation: Conversation, chat: Row | None = None) -> tuple[Segment, ...]:
        """The tokens of a conversation, none where it does not render; `chat` is the row that SFT would train on."""
        refusal = self._roles.refusal(conversation)
        if refusal is not None:
            self._findings.add(line, *refusal)
        try:
            if chat is None:
                return (rendered_segment(conversation, self._renderer),)
            segments, wrong = self._chats.segments(chat)
        except DataError as error:
            if refusal is None or refusal[0] != "roles":
                self._findings.add(line, "mask" if "to train on" in str(error) else "template", str(error))
            return ()
        if wrong:
            self._findings.add(line, "mask", wrong)
        return segments

    def _check_texts(self, line: int, row: Row, example: Example) -> None:
        """Pairing, overlap and leaks."""
        wrong = next(filter(None, (unpaired_message(one.messages) for one in example.conversations)), None)
        if wrong:
            self._findings.add(line, "pairing", wrong)
        first, *others = example.conversations
        said = [*first.messages, *(message for one in others for message in one.messages[one.num_prompt_messages :])]
        if found := self._overlaps.overlap(said):
            self._findings.add(line, "overlap", found)
        if leaked := leaked_answer(row, example.prompt, example.answer, self._settings.answer_field):
            self._findings.add(line, "leak", leaked)

    def _gym_row(self, line: int, row: Row, kind: str) -> tuple[Segment, ...]:
        """A row of a tasks or rollouts file."""
        reward = row.get("reward")
        sound = not isinstance(reward, bool) and isinstance(reward, int | float) and math.isfinite(reward)
        try:
            view = view_row(row if sound else {**row, "reward": None})
        except DataError as error:
            self._findings.add(line, "columns", str(error))
            return ()
        if kind == "tasks":
            return self._task(line, row, view)
        if view.failed or view.masked:
            what = "a failure" if view.failed else "masked by its environment"
            self._findings.add(line, "failure", f"the rollout is {what}; no dataset takes it")
            return ()
        if not sound:
            self._findings.add(line, "reward", f"reward {reward!r} is no finite number")
        return self._rollout(line, row, view)

    def _task(self, line: int, row: Row, view: RolloutView) -> tuple[Segment, ...]:
        wrong = [one for one in row_problems(row, RowKind.TASKS) if not one.startswith(NO_AGENT)]
        if wrong:
            self._findings.add(line, "columns", wrong[0])
        if wrong or not view.context:  # an environment that speaks first leaves nothing to render
            return ()
        try:
            example = read_task(view)
        except DataError as error:
            self._findings.add(line, "chat", str(error))
            return ()
        self._check_texts(line, row, example)
        return self._rendered(line, example.conversations[0])

    def _rollout(self, line: int, row: Row, view: RolloutView) -> tuple[Segment, ...]:
        turns, told = self._tokens.turns(row, view)
        example = self._rollout_example(line, view)
        answers: list[Message] = []
        if example is not None:
            self._check_texts(line, row, example)
            sampled = example.conversations[0].messages[len(example.prompt) :]
            answers = [one for one in sampled if one["role"] == "assistant"]
        for check, message in (*told, *self._tokens.check(turns, answers)):
            self._findings.add(line, check, message)
        if turns:
            return self._segments(line, turns)
        return self._rendered(line, example.conversations[0]) if example is not None and example.renders else ()

    def _segments(self, line: int, turns: Sequence[TurnTokens]) -> tuple[Segment, ...]:
        try:
            segments = trajectory_segments(turns)
        except DataError as error:
            self._findings.add(line, "prefix", str(error))
            return ()
        self.num_segments += len(segments)
        return segments

    def _rollout_example(self, line: int, view: RolloutView) -> Example | None:
        """The rollout as a chat; None, and a finding, for one that has no such form."""
        if view.output is None:
            self._findings.add(line, "failure", "the row holds no output")
            return None
        if wrong := unpaired_item(view.items):
            self._findings.add(line, "pairing", wrong)
            return None
        try:
            return read_rollout(view)
        except DataError as error:
            problem = error
        try:
            example = read_rollout(view, arguments="string")
        except DataError:
            self._findings.add(line, "chat", str(problem))
            return None
        self._findings.add(line, "arguments", str(problem))
        return example
