"""Questions and answers meet: what a model was asked, and what became of it, whatever the policy that keeps it.

A *question* is a row of the questions view whose key has not been asked yet; an *answer* is a row of the answers view
with that key and a label. An answered question is an *example*: the features as served, and the label.

- An answer belongs to a question when its `at` is at most `wait` behind the question's. A question with no answer is
  closed when the watermark is more than `wait` past it. An answer that comes first is kept as long, for a question
  whose `at` is at most `wait` behind: it is then predicted, and learnt right after.
  The row's own `at` decides, never the watermark, which only frees memory: how the input was cut does not show.

Corrections:

- of a question (-old +new of its key in one `seq`, or one more insert): neither asked again nor learnt otherwise; if
  its `at` grows, its answer is awaited that much longer;
- of a question withdrawn (-old alone): it is no example any more, and none again, even if the row comes back;
- of an answer (-old, +new, or one more insert): the example is taken back, and is one again with the newest label;
  an answer that is taken back when the clock is more than `wait` past the question stays learnt;
- of an answer whose question is unknown: replaces it (the newest counts, and one that was not taken back before the
  next came is unmatched);
- a null label is no answer, and a row with a null key is neither question nor answer: both are counted.

A key may be asked anew by a row whose `at` is more than `wait` past the earlier question.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from engine.spec import ModelSpec

OPEN, ANSWERED, WITHDRAWN, CLOSED = range(4)
GONE = -1
"""The row of a question that was taken back."""

COUNTED = (
    "questions",
    "repeated",
    "answers",
    "learned",
    "closed",
    "withdrawn",
    "unmatched",
    "corrections",
    "null_labels",
    "null_keys",
)


@dataclass(slots=True, eq=False)
class Question:
    """What was served, and what became of it.

    row: where its features as served lie. x: these as the learner is given them. said: what the learner said; value:
    what was published of it, by `version`, of which the newest example became known when it says in `trained`. first:
    whether it has not been answered yet. told: the `at` and position of its answer. guess, shade: what the baseline
    and the shadow said.
    now: the row in which its features are now, None as long as it is `row`, `GONE` when there is none.
    example: its number among the examples, in the order in which they became such. age: how long after the newest
    example of its version it became known. guards: those that acted on it, once it is `guarded`.
    """

    key: Any
    at: int
    row: int
    x: Any
    said: Any = None
    value: Any = None
    version: str | None = None
    trained: int | None = None
    guess: Any = None
    shade: Any = None
    state: int = OPEN
    first: bool = True
    first_label: Any = None
    label: Any = None
    told: tuple[int, int] = (0, 0)
    example: int = -1
    age: int = 0
    guards: str | None = None
    guarded: bool = False
    now: int | None = None


Answer = tuple[Any, Any, int, int, int, bool]
"""A row of the answers: key, label, `at`, position, weight, and whether it is half of a correction."""


class Examples:
    """The questions of a model that can still be answered or corrected.

    learn, unlearn: called with a question that has become an example, and that is none any more. gone: called with a
    question that is forgotten.
    """

    def __init__(
        self,
        spec: ModelSpec,
        learn: Callable[[Question], None],
        unlearn: Callable[[Question], None],
        gone: Callable[[Question], None],
    ) -> None:
        self.spec, self._learn, self._unlearn, self._gone = spec, learn, unlearn, gone
        self.count = dict.fromkeys(COUNTED, 0)
        self._asked: dict[Any, Question] = {}
        self._ends: list[tuple[int, int, Question]] = []
        self._early: dict[Any, tuple[int, int, Any, int]] = {}
        self._early_ends: list[tuple[int, int, Any]] = []
        self._ticket = 0

    @property
    def waiting(self) -> int:
        """How many questions wait for their answer."""
        count = self.count
        return count["questions"] - count["learned"] - count["closed"] - count["withdrawn"]

    def matured(self, clock: int) -> int:
        """Below which `at` no question waits for its answer, now or for more than `wait`."""
        waiting = (q.at for q in self._asked.values() if q.state == OPEN and q.first)
        return min((at for at in waiting if at + self.spec.wait >= clock), default=clock)

    def is_new(self, key: Any, at: int, moved: bool) -> bool:
        """Whether a row of the questions is to be asked."""
        if key is None:
            self.count["null_keys"] += 1
            return False
        earlier = self._asked.get(key)
        if earlier is None:
            return True
        if moved or at <= earlier.at + self.spec.wait:
            self.count["repeated"] += 1
            earlier.at = max(earlier.at, at)
            return False
        self._close(earlier)
        return True

    def add(self, question: Question) -> None:
        """A question that is asked now."""
        self.count["questions"] += 1
        self._asked[question.key] = question
        self._ticket += 1
        heapq.heappush(self._ends, (question.at, self._ticket, question))

    def told_before(self, question: Question) -> None:
        """Learn the answer that was there before its question."""
        if not self._early:
            return
        if (found := self._early.get(question.key)) and abs(found[0] - question.at) <= self.spec.wait:
            del self._early[question.key]
            self._settle(question, found[2], found[0], found[3])

    def answer(self, told: Answer, clock: int) -> None:
        """Take in a row of the answers. clock: when it became known."""
        key, label, at, pos, weight, moved = told
        count = self.count
        if key is None or label is None:
            if weight > 0:
                count["null_keys" if key is None else "null_labels"] += 1
            return
        if weight > 0:
            count["answers"] += 1
        elif (early := self._early.get(key)) and early[0] == at and early[2:] == (label, pos):
            del self._early[key]
            return
        question = self._asked.get(key)
        if question is None or at > question.at + self.spec.wait:
            if weight > 0:
                count["unmatched"] += key in self._early
                self._ticket += 1
                self._early[key] = at, self._ticket, label, pos
                heapq.heappush(self._early_ends, (at, self._ticket, key))
        elif weight > 0:
            if question.state == ANSWERED:
                count["corrections"] += not moved
                self._take_back(question)
            if question.state == OPEN:
                self._settle(question, label, at, pos)
        elif (question.state, question.label, question.told) == (ANSWERED, label, (at, pos)) and (
            clock <= question.at + self.spec.wait
        ):
            count["corrections"] += 1
            self._take_back(question)

    def withdraw(self, key: Any, at: int) -> None:
        """A row of the questions was taken back, for nothing."""
        question = self.of(key, at)
        if question is None:
            return
        if question.state == ANSWERED:
            self.count["corrections"] += 1
            self._take_back(question)
        elif question.state == OPEN and question.first:
            self.count["withdrawn"] += 1
        question.state = WITHDRAWN

    def forget(self, limit: int) -> None:
        """Close and drop what no row still to come can belong to."""
        ends, early_ends = self._ends, self._early_ends
        while ends and ends[0][0] < limit:
            _, ticket, question = heapq.heappop(ends)
            if question.at >= limit:
                heapq.heappush(ends, (question.at, ticket, question))
                continue
            self._close(question)
            if self._asked.get(question.key) is question:
                del self._asked[question.key]
            self._gone(question)
        while early_ends and early_ends[0][0] < limit:
            _, ticket, key = heapq.heappop(early_ends)
            if (found := self._early.get(key)) and found[1] == ticket:
                del self._early[key]
                self.count["unmatched"] += 1

    def erase(self, rows: Collection[int], position: Callable[[Question], int]) -> list[Question]:
        """Withdraw the questions that came from these rows, and take back the answers that did; returns the former.

        Nothing is left of what these rows said, but for the keys of the questions.
        """
        self._early = {key: early for key, early in self._early.items() if early[3] not in rows}
        self._early_ends = [e for e in self._early_ends if e[2] in self._early]
        heapq.heapify(self._early_ends)
        asked = [q for _, _, q in self._ends]
        gone = [q for q in asked if position(q) in rows]
        for question in gone:
            if self._asked.get(question.key) is question:
                self.withdraw(question.key, question.at)
            question.x = question.label = question.first_label = None
        for question in asked:
            if question.state != WITHDRAWN and question.told[1] in rows:
                if question.state == ANSWERED:
                    self._take_back(question)
                question.label = question.first_label = None
        return gone

    def answered(self) -> list[Question]:
        """The examples that can still be corrected."""
        return [q for q in self._asked.values() if q.state == ANSWERED]

    def of(self, key: Any, at: int) -> Question | None:
        """The question to which a correction of a row belongs; None when that is an earlier one of the key."""
        question = self._asked.get(key)
        return None if question is None or abs(at - question.at) > self.spec.wait else question

    def find(self, key: Any) -> Question | None:
        """The question of a key, as long as it can still be answered or corrected."""
        return self._asked.get(key)

    def _settle(self, question: Question, label: Any, at: int, pos: int) -> None:
        question.state, question.label, question.told = ANSWERED, label, (at, pos)
        if question.first:
            question.first_label = label
            self.count["learned"] += 1
        self._learn(question)
        question.first = False

    def _take_back(self, question: Question) -> None:
        self._unlearn(question)
        question.state = OPEN

    def _close(self, question: Question) -> None:
        if question.state == OPEN:
            self.count["closed"] += question.first
            question.state = CLOSED

    def snapshot(self) -> Any:
        return self.count, self._asked, self._ends, self._early, self._early_ends, self._ticket

    def restore(self, state: Any) -> None:
        self.count, self._asked, self._ends, self._early, self._early_ends, self._ticket = state
