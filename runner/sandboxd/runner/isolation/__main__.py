"""`python -m sandboxd.runner.isolation`: what this host can do, for this user, without a daemon."""

from __future__ import annotations

from sandboxd.runner.isolation import libffi
from sandboxd.runner.isolation.catalogue import LAYERS


def main() -> None:
    """Probe every layer and print one line each."""
    libffi.find_writable_code()
    for layer in LAYERS:
        state = layer.probe()
        print(
            f"{layer.name:20} {layer.taker:14} {'yes' if state.active else 'NO ':3} {state.detail}"
        )
        if state.remedy:
            print(f"{'':20} remedy: {state.remedy}")


if __name__ == "__main__":
    main()
