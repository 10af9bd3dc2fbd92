"""The committed modules themselves: what they import and export, and that nothing leaked in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wasmtime

GUESTS = Path(__file__).parents[2] / "examples" / "guests"
MODULES = sorted(GUESTS.glob("*/*.wasm"))
SOURCES = {"c": ".c", "assemblyscript": ".ts"}
PREVIEW1 = "wasi_snapshot_preview1"


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def signatures(externs: list[wasmtime.ExportType]) -> dict[str, str]:
    found = {}
    for extern in externs:
        kind = extern.type
        if isinstance(kind, wasmtime.FuncType):
            found[extern.name] = f"{list(map(str, kind.params))} -> {list(map(str, kind.results))}"
        else:
            found[extern.name] = "memory"
    return found


EXPORTS = {
    "email": {"validate": "['i32', 'i32'] -> ['i32']"},
    "json": {"format": "['i32', 'i32'] -> ['i64']"},
    "resize": {"resize": "['i32', 'i32'] -> ['i64']"},
    "sha256": {"sha256": "['i32', 'i32'] -> ['i32']"},
    "c/uppercase": {"uppercase": "['i32', 'i32'] -> ['i32', 'i32']"},
    "assemblyscript/uppercase": {
        "uppercase": "['i32', 'i32'] -> ['i64']",
        "dealloc": "['i32', 'i32'] -> []",
    },
    "endless_loop": {"spin": "[] -> []", "_start": "[] -> []"},
    "sleep": {"_start": "[] -> []"},
    "word_count": {"_start": "[] -> []"},
}
IMPORTS = {
    "resize": {"env.log"},
    "assemblyscript/uppercase": {"env.abort"},
    "sleep": {PREVIEW1},
    "word_count": {PREVIEW1},
}


def test_every_source_has_a_module_and_every_module_a_source() -> None:
    sources = {
        path.with_suffix(".wasm")
        for folder, suffix in SOURCES.items()
        for path in (GUESTS / folder).glob(f"*{suffix}")
        if path.stem != "memory"
    }
    assert set(MODULES) == sources


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_exports_what_its_convention_says_and_no_more(path: Path) -> None:
    module = wasmtime.Module(wasmtime.Engine(), path.read_bytes())
    expected = dict(EXPORTS.get(name_of(path)) or EXPORTS[path.stem])
    expected["memory"] = "memory"
    if "_start" not in expected:
        expected["alloc"] = "['i32'] -> ['i32']"
    assert signatures(module.exports) == expected


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_it_says(path: Path) -> None:
    module = wasmtime.Module(wasmtime.Engine(), path.read_bytes())
    found = {
        PREVIEW1 if one.module == PREVIEW1 else f"{one.module}.{one.name}" for one in module.imports
    }
    assert found == (IMPORTS.get(name_of(path)) or IMPORTS.get(path.stem, set()))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_holds_no_path_and_no_debug_information(path: Path) -> None:
    data = path.read_bytes()
    assert b".debug_" not in data
    assert b"sourceMappingURL" not in data
    assert re.search(rb"/(home|root|tmp|usr|work|var|opt)/|\.zig\b|\.c\b", data) is None


def test_all_modules_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODULES) < 400_000


def test_the_table_of_the_readme_names_every_module_with_its_size() -> None:
    rows = re.findall(r"^\| \[`([a-z]+/\w+\.wasm)`\].*\| ([\d,]+) \|$", _readme(), re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for name, size in rows}
    assert sizes == {f"{name_of(path)}.wasm": path.stat().st_size for path in MODULES}


def test_the_locked_packages_carry_a_digest_and_no_host() -> None:
    lock = (GUESTS / "toolchain" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') == lock.count('"node_modules/')
    assert "--hash=sha256:" in (GUESTS / "toolchain" / "requirements.txt").read_text()


def _readme() -> str:
    return (GUESTS / "README.md").read_text(encoding="utf-8")
