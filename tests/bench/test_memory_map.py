"""What a process's memory consists of."""

from __future__ import annotations

from bench import memory_map

SMAPS = """\
55d0-55d8 rw-p 00000000 00:00 0                          [heap]
Rss:                 100 kB
Pss:                  60 kB
Private_Clean:         0 kB
Private_Dirty:        50 kB
VmFlags: rd wr mr mw me ac sd
7f00-7f10 r-xp 003c4000 fe:00 2220141                    /lib/wasmtime/_libwasmtime.so
Pss:                2048 kB
Private_Dirty:         0 kB
7f20-7f30 rw-p 00000000 00:00 0
Pss:                1024 kB
Private_Dirty:      1024 kB
7fae6f31f000-7fae6f35f000 rw-p 00000000 00:00 0
Pss:                  12 kB
7f40-7f50 r-xp 00000000 00:00 0
Pss:                   4 kB
7f60-7f70 rw-s 00000000 00:01 99                         /memfd:outbox (deleted)
Pss:                   8 kB
""".splitlines()


def test_each_mapping_is_named_by_what_it_holds() -> None:
    kinds = [mapping.kind.partition(" (")[0] for mapping in memory_map.parse(SMAPS)]
    assert kinds == [
        "heap", "engine's library", "anonymous", "stacks", "compiled code", "memory files",
    ]  # fmt: skip


def test_shares_add_up_the_largest_kind_first() -> None:
    mappings = list(memory_map.parse(SMAPS))
    assert memory_map.total(mappings).pss * 1024 == 60 + 2048 + 1024 + 12 + 4 + 8
    assert memory_map.total(mappings).private * 1024 == 50 + 1024
    assert next(iter(memory_map.by_kind(mappings))) == "engine's library"
