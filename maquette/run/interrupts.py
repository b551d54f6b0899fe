"""Ctrl-C and SIGTERM: stop at the end of the step where a loop is listening, at once where none is."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

LISTENING = 3.0
"""A loop that asked within this many seconds is taken to be listening still."""


class Interrupts:
    """Turns the first Ctrl-C into a request while somebody polls `keep_going`; otherwise, or the second time, into
    KeyboardInterrupt right away. Signals can be handled in the main thread only; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._asked = float("-inf")
        self.requested = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Start handling SIGINT and SIGTERM, unless a caller has switched SIGINT off or taken it over."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def keep_going(self) -> bool:
        """False once a stop was requested."""
        self._asked = time.monotonic()
        return not self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        listening = time.monotonic() - self._asked < LISTENING
        if self.requested or not listening:
            raise KeyboardInterrupt
        self.requested = True
