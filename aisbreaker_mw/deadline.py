"""The deadline of a connection, which moves often and seldom passes."""

import asyncio
import math
from abc import abstractmethod

NEVER = math.inf
"""The deadline of a connection that waits for nothing."""

_SLACK = 0.001
"""Seconds by which an event loop's timer may fire early."""


class DeadlineTimer:
    """
    Base class of a connection that has one deadline at a time.

    Plainly, every wait would arm a timer of the event loop and cancel it. Here one timer is armed, and armed again only when it
    fires before the deadline or when the deadline comes nearer. So a wait costs a comparison. It is a base class because an
    object of its own would refer back to the connection, and the two would wait for the garbage collector.

    Args:
        loop: the connection's event loop.
    """

    __slots__ = ("_timer", "_timer_at", "deadline", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.deadline = NEVER
        """Seconds on the loop's clock. A later deadline, or none, may be assigned directly."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def set_deadline(self, deadline: float) -> None:
        """
        Move the deadline.

        Args:
            deadline: seconds on the loop's clock, or `NEVER`.
        """
        self.deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def stop_timer(self) -> None:
        """Cancel the timer for good. No deadline passes from now on."""
        self._timer_at = -math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @abstractmethod
    def on_deadline(self) -> None:
        """Act on the deadline, which has passed."""

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        if self.loop.time() + _SLACK < self.deadline:
            self.set_deadline(self.deadline)
        else:
            self.on_deadline()
