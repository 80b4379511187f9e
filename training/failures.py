"""An error in one process ends all of them, with that error: the others would wait for it until a time-out."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from accelerate import PartialState
from torch.distributed import distributed_c10d

KEY, SEEN = "tulip-diffusion/failure", "tulip-diffusion/failure-seen"
POLL_SECONDS = 0.25
GRACE_SECONDS = 10.0  # how long a failed process waits until all others have seen its error

_active = False


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """An error inside the block in one process is printed by all others, which then end with its exit status.

    Their main threads may be waiting inside a collective operation, which nothing can interrupt, so a second thread
    watches for the error and ends the process. Inside another such block, and in a single process, it does nothing.
    """
    global _active
    state = PartialState()
    if _active or state.num_processes == 1:
        yield
        return
    _active = True
    store, done = distributed_c10d._get_default_store(), threading.Event()
    watcher = threading.Thread(target=watch, args=(store, done), daemon=True)
    watcher.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        done.set()
        watcher.join()
        tell(store, state, error)
        raise
    finally:
        done.set()
        watcher.join()
        _active = False


def tell(store: Any, state: PartialState, error: BaseException) -> None:
    """Put `error` where the others look, and wait until they have: the first process keeps that place for all."""
    status = 2 if isinstance(error, ValueError | TypeError | OSError | ImportError) else 1
    text = f"{status}Process {state.process_index} of {state.num_processes} failed: {type(error).__name__}: {error}"
    with contextlib.suppress(RuntimeError):  # the place is gone where its process was killed
        if store.compare_set(KEY, "", text).decode() != text:
            return  # another process failed first
        deadline = time.monotonic() + GRACE_SECONDS
        while store.add(SEEN, 0) < state.num_processes - 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def watch(store: Any, done: threading.Event) -> None:
    """End this process as soon as another one has failed."""
    with contextlib.suppress(RuntimeError):
        while not done.wait(POLL_SECONDS):
            if store.check([KEY]):
                text = store.get(KEY).decode()
                print(text[1:], file=sys.stderr, flush=True)
                store.add(SEEN, 1)
                os._exit(int(text[0]))
