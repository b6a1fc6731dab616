"""The work behind the event loop: a bounded queue, a few threads, and questions that are alike answered together.

A thread that becomes free takes the oldest question and with it those waiting retrievals that ask for the same search, so that batches form
by themselves under load and nobody waits for one to fill. Every batch takes the current generation once: no answer mixes two.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from dig_models.serve.errors import where
from dig_models.serve.service import InvalidQuery, Reply, Search, Service

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """The queue is full, or a question waited too long; to be asked again a little later."""


class NotReady(RuntimeError):
    """No generation is open yet; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Question:
    """Users and a search, or one user and the items to rank."""

    users: tuple[str, ...]
    search: Search | None = None
    items: tuple[str, ...] = ()
    answer: Future[Reply] = field(default_factory=Future)


class Engine:
    """Answers questions from whatever generation serves when their turn comes.

    Args:
        current: the generation that serves, None if none is open.
        workers: threads that answer.
        waiting: questions that may wait; one more is refused.
        coalesce: users of retrievals that are answered as one batch; 1 answers every question alone.
        torch_threads: threads of one tensor operation.
        batched: told the number of users of each batch.
    """

    def __init__(
        self,
        current: Callable[[], Service | None],
        *,
        workers: int,
        waiting: int,
        coalesce: int,
        torch_threads: int,
        batched: Callable[[int], None] = lambda users: None,
    ) -> None:
        self._current, self._waiting, self._coalesce, self._torch_threads = current, waiting, coalesce, torch_threads
        self._batched = batched
        self._queue: deque[_Question] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"dig-answer-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait for a thread."""
        return len(self._queue)

    def retrieve(self, users: Sequence[str], search: Search) -> Future[Reply]:
        """Ask for the best items for some users; see ``Service.retrieve``.

        Raises:
            Busy: the queue is full.
            NotReady: no generation is open.
        """
        return self._put(_Question(users=tuple(users), search=search))

    def rank(self, user: str, items: Sequence[str]) -> Future[Reply]:
        """Ask for the order of some items; see ``Service.rank``; errors as ``retrieve``."""
        return self._put(_Question(users=(user,), items=tuple(items)))

    def close(self) -> None:
        """Answer what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, question: _Question) -> Future[Reply]:
        if self._current() is None:
            raise NotReady("no index generation is open yet")
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping; ask another one")
            if len(self._queue) >= self._waiting:
                raise Busy(f"{len(self._queue)} questions are waiting, as many as serve.waiting allows; ask again in a second")
            self._queue.append(question)
            self._changed.notify()
        return question.answer

    def _work(self) -> None:
        torch.set_num_threads(self._torch_threads)
        while batch := self._take():
            self._answer(batch)
            del batch  # a worker that waits must not hold on to answers

    def _take(self) -> list[_Question]:
        """The oldest question with those that can be answered together with it; none when closed and empty."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._queue.popleft()
            batch, users = [first], len(first.users)
            if first.search is not None:
                for other in list(self._queue):
                    if other.search == first.search and users + len(other.users) <= self._coalesce:
                        self._queue.remove(other)
                        batch.append(other)
                        users += len(other.users)
        return [question for question in batch if question.answer.set_running_or_notify_cancel()] or self._take()

    def _answer(self, batch: list[_Question]) -> None:
        service = self._current()
        try:
            if service is None:
                raise NotReady("no index generation is open")
            first = batch[0]
            if first.search is None:
                replies = [service.rank(first.users[0], first.items)]
            else:
                together = service.retrieve([user for question in batch for user in question.users], first.search)
                replies = _split(together, [len(question.users) for question in batch])
                self._batched(len(together.answers))
        except Exception as error:
            # Whatever it is, those who asked must hear of it, and the thread must live.
            if not isinstance(error, (InvalidQuery, NotReady)):
                log.error("a question failed: %s", where(error))
            for question in batch:
                # Without its frames, which hold the generation and this very batch.
                question.answer.set_exception(error.with_traceback(None))
            return
        for question, reply in zip(batch, replies, strict=True):
            question.answer.set_result(reply)


def _split(together: Reply, sizes: Sequence[int]) -> list[Reply]:
    """The parts of a batch's answer that belong to each question."""
    replies, at = [], 0
    for size in sizes:
        replies.append(Reply(source=together.source, answers=together.answers[at : at + size], unknown_items=together.unknown_items))
        at += size
    return replies
