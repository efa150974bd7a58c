"""Writing files so that nobody ever sees half of one, locks that end with their process, full disks."""

import errno
import fcntl
import glob
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAFT_PATTERN = ".*.draft"  # what `write_atomic` leaves if it is killed
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# Words of libraries that could not write and give no errno: safetensors ("os error"), torch (the last two).
FULL_DISK_SIGNS = (
    "No space left",
    "File too large",
    "os error 28",
    "os error 27",
    "PytorchStreamWriter",
    "unexpected pos",
)
ALLOCATED_BYTES = 1 << 20  # written at once
LOCK_POLL_SECONDS = 0.2  # between looks at a lock that another process holds
FOLDER_ATTEMPTS = 100  # to make a folder that other processes remove at once, being empty


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, flush to disk, move there: the old content or the new, nothing between. Drafts of
    the same file whose processes were killed are removed."""
    path = Path(path)
    remove_stale_drafts(path)
    if isinstance(content, str):
        content = content.encode()
    # beside it, since a rename is atomic within a file system only
    draft = path.with_name(f"{start_draft_name(path)}{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        # the user knows the file, not its draft
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if draft.exists():
            draft.unlink()


def open_draft(path: Path) -> Path:
    """An empty file beside `path` that nobody takes for a result; the next call removes it if this process is
    killed before it can."""
    remove_stale_drafts(path)
    draft = path.with_name(f"{start_draft_name(path)}{os.getpid()}.draft")
    draft.touch()
    return draft


def start_draft_name(path: Path) -> str:
    """The beginning of the names of a file's drafts: processes are counted anew on each host."""
    return f".{path.name}.{platform.node()}."


def remove_stale_drafts(path: Path) -> None:
    """Remove drafts of a file that processes of this host have left which were killed."""
    start = start_draft_name(path)
    for draft in path.parent.glob(f"{glob.escape(start)}*.draft"):
        process = draft.name.removeprefix(start).removesuffix(".draft")
        if process.isdigit() and not is_alive(int(process)):
            draft.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this host."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no number of a process
        return False
    except PermissionError:  # of somebody else
        return True
    return True


def allocate_file(path: Path) -> None:
    """Take the disk space of a file that has holes, or raise an OSError: writing into a hole through a map
    ends the process where the disk is full."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        # macOS: what is there is written once more
        while chunk := file.read(ALLOCATED_BYTES):
            file.seek(-len(chunk), os.SEEK_CUR)
            file.write(chunk)


def sync_directory(path: Path) -> None:
    """Make renames inside a directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a directory and those above it, where `remove_empty_folders` of other processes may remove them at
    any moment."""
    for _ in range(FOLDER_ATTEMPTS):
        # one above it has gone, or it was there and has gone
        with suppress(FileNotFoundError, FileExistsError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)  # its error


@contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold `path` as a lock among processes; `waiting` is called once if another process holds it, and may
    raise to give up.

    A POSIX lock: it ends with the process, however that ends, and forked children (data loaders) do not
    inherit it. The file is removed at the end; whoever locked a removed file starts over.
    """
    has_waited = False
    while True:
        make_folder(path.parent)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the empty directory
            continue
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # without a link it is a file that its last owner has removed: nobody else would find it
            if os.fstat(handle).st_nlink:
                break
        except BlockingIOError:
            pass
        except BaseException:
            os.close(handle)
            raise
        else:
            os.close(handle)
            continue
        os.close(handle)
        if not has_waited:
            waiting()
            has_waited = True
        time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def remove_stale_lock(path: Path) -> None:
    """Remove a lock file whose process was killed before it could; one that is held stays."""

    def give_up() -> None:
        raise BlockingIOError

    if path.exists():
        with suppress(BlockingIOError), hold_lock(path, give_up):
            pass


@contextmanager
def share_folder(path: Path) -> Iterator[None]:
    """Make a folder, and while this lasts have `claim_folder` of any process refused. Without effect where
    the file system has no such locks."""
    handle = None
    while handle is None:
        make_folder(path)
        with suppress(FileNotFoundError):  # another process has just removed the empty directory
            handle = os.open(path, os.O_RDONLY)
    try:
        # of the folder itself, so that no file is left behind; it ends with the process
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def claim_folder(path: Path) -> Iterator[None]:
    """Have a folder alone; BlockingIOError if a process shares it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # no such locks here
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def remove_empty_folders(path: Path) -> Iterator[None]:
    """Directories at and above `path` that are made meanwhile go again if nothing comes to lie in them."""
    missing_folders = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        # innermost first: its parent may be empty then
        for folder in missing_folders:
            with suppress(OSError):  # there is something in it, or another process has removed it
                folder.rmdir()


def find_disk_error(error: Exception, where: Path) -> OSError | None:
    """The OSError, with a path, behind an error of a library that could not write; None for others."""
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        if error.filename:
            return error
        return OSError(error.errno, error.strerror, str(where))
    if any(sign in str(error) for sign in FULL_DISK_SIGNS):
        return OSError(errno.ENOSPC, "cannot write, the disk may be full", str(where))
    return None
