"""Builds the claims' guests and tools.

    python -m bench.claims.build            compile the guests, write the .wasm beside the sources
    python -m bench.claims.build --check    compile them aside and compare; exit 1 on a difference
    python -m bench.claims.build --tools    fetch the C compiler; build QuickJS, as a WASI command
                                            and for this machine

zig is pinned where the example guests pin it, QuickJS in toolchain/; both by digest.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.claims import inputs
from bench.claims.tools import (
    BUILD,
    GUESTS,
    HERE,
    INTERPRETERS,
    QUICKJS_NATIVE,
    QUICKJS_WASM,
    ROOT,
    BuildError,
    MissingError,
    run,
    zig,
)

ZIG_PIN = ROOT / "examples" / "guests" / "toolchain" / "requirements.txt"
QUICKJS_PIN = HERE / "toolchain" / "quickjs.txt"

# As examples/guests/build compiles its plugins.
_TARGET = ("-target", "wasm32-freestanding", "-O3")
_COMPILE = (*_TARGET, "-std=c17", "-g0", "-Wall", "-Wextra", "-Werror")
_LINK = (*_TARGET, "-nostdlib", "-Wl,--no-entry", "-Wl,-z,stack-size=65536")

_QUICKJS_SOURCES = ("quickjs.c", "libregexp.c", "libunicode.c", "dtoa.c")
# Upstream's code has warnings; they are upstream's.
_QUICKJS_FLAGS = ("-O2", "-std=gnu17", "-g0", "-D_GNU_SOURCE", "-fno-sanitize=undefined", "-w")
_QUICKJS_WASI = ("-target", "wasm32-wasi", "-Wl,--strip-debug")
_QUICKJS_HERE = ("-lm", "-lpthread", "-s")


def compile_guest(name: str, into: Path) -> Path:
    """Compile one guest; raises MissingError and BuildError."""
    unit, module = into / f"{name}.o", into / f"{name}.wasm"
    # Named relative to its folder, so that no path gets into the module.
    run([str(zig()), "cc", *_COMPILE, "-c", f"{name}.c", "-o", str(unit)], GUESTS)
    run([str(zig()), "cc", *_LINK, str(unit), "-o", str(module)], GUESTS)
    return module


def build_guests(check: bool) -> bool:
    """Build every guest; return True unless one differs from the committed one while checking."""
    same = True
    with tempfile.TemporaryDirectory(prefix="claims-") as scratch:
        for work in inputs.ALL:
            built = compile_guest(work.name, Path(scratch)).read_bytes()
            committed = GUESTS / f"{work.name}.wasm"
            equal = committed.is_file() and committed.read_bytes() == built
            if not equal and not check:
                committed.write_bytes(built)
            same = same and equal
            state = "same" if equal else "DIFFERS" if check else "written"
            print(f"{committed.name:20}{len(built):>8}  {state}")
    return same or not check


def install_zig() -> None:
    """Install the pinned compiler, unless it is there."""
    try:
        zig()
    except MissingError:
        print("installing the C compiler", file=sys.stderr)
        place = BUILD / "zig"
        _pip("install", "--only-binary", ":all:", "--target", str(place), "-r", str(ZIG_PIN))


def build_quickjs() -> None:
    """Fetch QuickJS's source and compile it twice, unless that was done."""
    if QUICKJS_WASM.is_file() and QUICKJS_NATIVE.is_file():
        return
    print("building QuickJS (about a minute)", file=sys.stderr)
    INTERPRETERS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="claims-") as scratch:
        source = _quickjs_source(Path(scratch))
        common = [str(zig()), "cc", *_QUICKJS_FLAGS, "-I", str(source), "qjs.c"]
        common += [str(source / name) for name in _QUICKJS_SOURCES]
        for flags, target in ((_QUICKJS_WASI, QUICKJS_WASM), (_QUICKJS_HERE, QUICKJS_NATIVE)):
            built = Path(scratch) / target.name
            run([*common, *flags, "-o", str(built)], GUESTS)
            # Whole or not at all, even if this is interrupted.
            partial = target.with_name(f"{target.name}.partial")
            shutil.copy(built, partial)
            partial.replace(target)


def _quickjs_source(scratch: Path) -> Path:
    _pip("download", "--no-binary", ":all:", "--dest", str(scratch), "-r", str(QUICKJS_PIN))
    [archive] = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(scratch, filter="data")
    [source] = scratch.glob("*/upstream-quickjs")
    return source


def _pip(verb: str, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", verb]
    # Not through `run`: where packages come from is the user's configuration and environment.
    command = [*pip, "--no-deps", "--require-hashes", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(f"pip {verb} failed")


def main() -> int:
    """Return the exit status: 0 for success, 1 for a difference or a failed build."""
    parser = argparse.ArgumentParser(prog="python -m bench.claims.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed modules")
    parser.add_argument("--tools", action="store_true", help="fetch and build the baselines")
    options = parser.parse_args()
    try:
        install_zig()
        if options.tools:
            build_quickjs()
            return 0
        return 0 if build_guests(options.check) else 1
    except (BuildError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
