"""When a run ends before all is made: at a limit of its own, or because somebody asks it to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from acavdl.config import Limits
from acavdl.errors import StorageError
from acavdl.storage import Store

#: The file by which a run is asked to end, wherever it is; the run removes it.
STOP = "_acavdl/stop"
#: Seconds between two looks at limits, and at the file.
_LOOK, _LOOK_FOR_FILE = 1.0, 5.0


class Ending:
    """Tells that a run is to end, and why.

    Parameters
    ----------
    store
        Where the dataset lies.
    limits
        Of the run.
    fetched
        Returns the bytes that the run has fetched.
    """

    def __init__(self, store: Store, limits: Limits, fetched: Callable[[], int]) -> None:
        self._store, self._limits, self._fetched = store, limits, fetched
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the run is to end now; None while it may go on."""
        return self._reason

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look, in a thread, whether the run is to end.

        Raises
        ------
        StorageError
            If the store can't be written.
        """
        # Left by somebody who wanted to end a run that was over.
        self._store.remove(STOP)
        thread = threading.Thread(target=self._watch, name="ending", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        looked = time.monotonic()
        while self._reason is None and not self._over.wait(_LOOK):
            self._reason = self._limit()
            if self._reason is None and time.monotonic() - looked >= _LOOK_FOR_FILE:
                looked = time.monotonic()
                self._reason = self._asked()

    def _limit(self) -> str | None:
        hours, most = self._limits.hours, self._limits.bytes
        if hours is not None and time.monotonic() - self._begun >= hours * 3600:
            return f"--max-hours {hours:g} are over"
        if most is not None and self._fetched() >= most:
            return f"--max-bytes {most:,} are fetched"
        return None

    def _asked(self) -> str | None:
        # A store that does not answer is no reason: the next look will tell.
        with contextlib.suppress(StorageError):
            if self._store.size(STOP) is not None:
                self._store.remove(STOP)
                return "acavdl stop asks for it"
        return None


def ask_to_end(store: Store, patience: float = 60.0) -> bool:
    """Ask the run that works on a dataset to end in order; return whether it has heard it.

    Parameters
    ----------
    patience
        Seconds to wait for it.

    Raises
    ------
    StorageError
        If the store can't be read or written.
    """
    store.write(STOP, b"")
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if store.size(STOP) is None:
            return True
        time.sleep(0.5)
    store.remove(STOP)
    return False
