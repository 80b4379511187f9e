"""Who draws: each visit has one turn at a time, which a click ends quietly."""

import threading
from dataclasses import dataclass, field

STEP = 60.0  # seconds that a step may take before who waits for its end is told that it is still drawn


@dataclass(eq=False)
class Turn:
    """One press of Draw. `begun` while it is drawn; `stopped` is set when its picture is no longer wanted."""

    stopped: threading.Event = field(default_factory=threading.Event)
    begun: bool = False


class Turns:
    """The turns of all visits, by gradio's session hash."""

    def __init__(self):
        self._turns: dict[str | None, Turn] = {}
        self._lock = threading.Condition()

    def take(self, visit: str | None) -> bool:
        """Ask for a turn; False while this visit's last one is being drawn.

        Where that one was stopped, this waits for its step to end, so that Draw right after Stop draws.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._stopping(visit), STEP)
            if (turn := self._turns.get(visit)) and turn.begun:
                return False
            self._turns[visit] = Turn()  # in place of one that still waits: a double click is one turn
            return True

    def _stopping(self, visit: str | None) -> bool:
        turn = self._turns.get(visit)
        return turn is not None and turn.begun and turn.stopped.is_set()

    def begin(self, visit: str | None) -> Turn | None:
        """The turn that this visit asked for, once; None where there is none."""
        with self._lock:
            turn = self._turns.get(visit)
            if turn is None or turn.begun:
                return None
            turn.begun = True
            return turn

    def stop(self, visit: str | None) -> None:
        """End this visit's turn, if it has one, after its step."""
        with self._lock:
            if (turn := self._turns.get(visit)) is not None:
                turn.stopped.set()

    def end(self, visit: str | None) -> None:
        """The visit's run is over, however it ended."""
        with self._lock:
            self._turns.pop(visit, None)
            self._lock.notify_all()
