"""The virtual machine: emulated, so that it needs neither KVM nor any setting of the host."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.system.image import Image

EMULATOR: Final = "qemu-system-x86_64"
_MEMORY_MIB: Final = 3072
_PROCESSORS: Final = 2
_PANIC: Final = "panic=-1"  # reboot at once, which -no-reboot turns into an end


@dataclass(frozen=True, slots=True)
class Transcript:
    """What came out of a run: the guest's report, and its console for when that is not enough."""

    report: str
    console: Path
    in_time: bool


def run(image: Image, directory: Path, timeout_s: float) -> Transcript:
    """Boot the image and wait until it powers itself off; what takes too long is ended."""
    console, report = directory / "console.log", directory / "report.log"
    for path in (console, report):
        path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *(EMULATOR, "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", str(_MEMORY_MIB), "-smp", str(_PROCESSORS)),
            *("-display", "none", "-monitor", "none", "-net", "none", "-no-reboot"),
            # Two ports: the kernel writes to the first one in the middle of lines.
            *("-serial", f"file:{console}", "-serial", f"file:{report}"),
            *("-drive", f"file={image.disk},format=raw,if=virtio,cache=unsafe"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", f"root=/dev/vda rw console=ttyS0 {_PANIC}"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout_s)
        in_time = True
    except subprocess.TimeoutExpired:
        in_time = False
    finally:
        process.kill()
        process.wait()
    text = report.read_text("utf-8", errors="replace") if report.exists() else ""
    return Transcript(text, console, in_time)
