"""Writing files so that nobody ever sees half of one, and locks that end with their process."""
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFTS = ".*.draft"  # what `write_atomic` leaves if it is killed
POLL = 0.2  # seconds between looks at a lock that another process holds


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, flush it to disk, and move it there: old content, new content, nothing between."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if draft.exists():
            draft.unlink()


def sync_directory(path: Path) -> None:
    """Make renames inside a directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold `path` as a lock among processes; `waiting` is called once if another process holds it.

    A POSIX lock: it ends with the process, however that ends, and forked children (data loaders) do not inherit it. The
    file is removed at the end; whoever locked a removed file starts over.
    """
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the empty directory
            continue
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                break
        except BlockingIOError:
            if not told:
                waiting()
                told = True
            time.sleep(POLL)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
