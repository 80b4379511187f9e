"""Who draws: each visit has one turn at a time, which a click ends quietly."""

import threading
from dataclasses import dataclass, field


@dataclass(eq=False)
class Turn:
    """One press of Draw. `begun` while it is drawn; `stopped` is set when its picture is no longer wanted."""

    stopped: threading.Event = field(default_factory=threading.Event)
    begun: bool = False


class Turns:
    """The turns of all visits, by gradio's session hash."""

    def __init__(self):
        self._turns: dict[str | None, Turn] = {}
        self._lock = threading.Lock()

    def take(self, visit: str | None) -> bool:
        """Ask for a turn; False while this visit's last one is being drawn."""
        with self._lock:
            if (turn := self._turns.get(visit)) and turn.begun:
                return False
            self._turns[visit] = Turn()  # in place of one that still waits: a double click is one turn
            return True

    def begin(self, visit: str | None) -> Turn | None:
        """The turn that this visit asked for, once; None where there is none."""
        with self._lock:
            turn = self._turns.get(visit)
            if turn is None or turn.begun:
                return None
            turn.begun = True
            return turn

    def stop(self, visit: str | None) -> bool:
        """End this visit's turn after its step; False where it has none."""
        with self._lock:
            turn = self._turns.get(visit)
            if turn is not None:
                turn.stopped.set()
            return turn is not None

    def end(self, visit: str | None) -> None:
        """The visit's run is over, however it ended."""
        with self._lock:
            self._turns.pop(visit, None)
