"""What the profile works out of marks, counts and samples; and once, briefly, all of it."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from bench import threads
from bench.figure import QUICK, Note, Table
from bench.figures.lives import Used, minor_faults
from bench.profile import __main__ as command
from bench.profile import (
    life,
    marks,
    nursery,
    points,
    report,
    samples,
    steps,
    switches,
    system_calls,
)
from bench.profile.attached import attached, require
from bench.profile.finding import Finding, NotMeasured, Subject
from bench.profile.marks import Gone, Marks, Point
from bench.profile.nursery import Life
from bench.profile.steps import Window
from bench.report import markers
from bench.stage import ROOT, Stage
from bench.threads import Account, Thread
from click.testing import CliRunner

# --- threads --------------------------------------------------------------------------------------

STATUS = """Name:\tevent_engine
Umask:\t0022
State:\tS (sleeping)
voluntary_ctxt_switches:\t2697
nonvoluntary_ctxt_switches:\t865
"""


def test_a_thread_is_read_from_the_kernels_text() -> None:
    account = threads.parse(STATUS, "30861808 51857513 3562\n")
    assert account == Account(0.030861808, 0.051857513, 2697, 865)


@pytest.mark.parametrize(
    ("name", "is_main", "role"),
    [
        ("python", True, threads.MAIN),
        ("python", False, threads.QUEUE),
        ("event_engine", False, threads.ENGINE),
        ("grpc_global_tim", False, threads.OTHERS),
    ],
)
def test_what_a_thread_is_for_is_told_by_its_name(name: str, is_main: bool, role: str) -> None:
    assert threads.role_of(name, "python", is_main=is_main) == role


def test_the_growth_of_threads_is_summed_by_what_they_are_for() -> None:
    before = {1: Thread(threads.ENGINE, Account(1.0, 0.0, 10, 1))}
    after = {
        1: Thread(threads.ENGINE, Account(1.5, 0.5, 12, 1)),
        2: Thread(threads.ENGINE, Account(0.25, 0.0, 1, 0)),
    }
    spent = threads.spent(before, after)
    assert spent[threads.ENGINE] == Account(0.75, 0.5, 3, 0)
    assert spent[threads.ENGINE].per(3).voluntary == 1
    assert spent[threads.MAIN] == Account()


def test_this_process_has_a_main_thread_that_ran() -> None:
    found = threads.read(os.getpid())
    assert found[os.getpid()].role == threads.MAIN
    assert found[os.getpid()].account.ran_s > 0


def test_page_faults_are_found_whatever_the_process_calls_itself() -> None:
    stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 1039 0 2 0 1 3 0 0 20 0 2 0 99\n"
    assert minor_faults(stat) == 1039
    assert Used(50.0, 1.0).since(Used(10.0, 0.5), 20) == Used(2.0, 0.025)


# --- marks ----------------------------------------------------------------------------------------


class Product:
    def double(self, number: int) -> int:
        return 2 * number

    async def later(self, number: int) -> int:
        return number

    def fail(self) -> None:
        raise KeyError


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Product:
    # What a test wraps is put back.
    for name in ("double", "later", "fail"):
        monkeypatch.setattr(Product, name, getattr(Product, name))
    return Product()


async def test_a_wrapped_function_does_what_it_did_and_marks_both_ends(product: Product) -> None:
    taken = Marks(["begin", "end", "late", "later"])
    taken.wrap(Point(__name__, "Product.double", "begin", "end"))
    taken.wrap(Point(__name__, "Product.later", "late", "later"))
    assert product.double(2) == 4
    assert await product.later(3) == 3
    found = taken.taken()
    assert [name for name, _ in found] == ["begin", "end", "late", "later"]
    assert [at for _, at in found] == sorted(at for _, at in found)


def test_a_function_that_raises_makes_its_end_as_well(product: Product) -> None:
    taken = Marks(["begin", "end"])
    taken.wrap(Point(__name__, "Product.fail", "begin", "end"))
    with pytest.raises(KeyError):
        product.fail()
    assert [name for name, _ in taken.taken()] == ["begin", "end"]


@pytest.mark.parametrize("path", ["Product.gone", "gone", "Gone.double"])
def test_a_function_that_is_gone_is_named_with_where_to_look(path: str) -> None:
    with pytest.raises(Gone, match=f"no function {path} any more.*bench/profile"):
        Marks(["a"]).wrap(Point(__name__, path, "a"))


def test_a_wrapper_costs_something() -> None:
    assert 0 < marks.cost_ns() < 100_000


def test_every_boundary_is_there_and_every_mark_in_the_order() -> None:
    for point in (*points.SUPERVISOR, *points.ECHO):
        marks.resolve(point)
    assert sorted(points.names(points.SUPERVISOR)) == sorted(points.ORDER)
    assert sorted(points.names(points.ECHO)) == sorted(points.ECHO_ORDER)


# --- steps ----------------------------------------------------------------------------------------


def test_a_servers_marks_are_set_beside_its_clients() -> None:
    windows = [Window(100, 200, 5), Window(300, 410, 7)]
    made = [("a", 320), ("a", 120), ("b", 150), ("b", 330), ("c", 250)]
    timed = steps.joined(windows, made, ["a", "b"])
    assert timed.steps == [(20, 30, 50), (20, 10, 80)]
    assert timed.whole == [100, 110]
    assert timed.inside == [5, 7]


def test_a_call_with_other_marks_is_left_out() -> None:
    windows = [Window(at, at + 10, 1) for at in range(0, 100, 20)]
    made = [("a", at + 1) for at in range(0, 100, 20)]
    assert len(steps.joined(windows, [*made, ("b", 3)], ["a"]).whole) == 4


def test_calls_that_make_other_marks_than_expected_are_an_error_that_tells_both() -> None:
    with pytest.raises(RuntimeError, match="0 of 1 calls made the marks a, b; most others made b"):
        steps.joined([Window(0, 10, 1)], [("b", 5)], ["a", "b"])


# --- tools ----------------------------------------------------------------------------------------

PERF_TRACE = """
 Summary of events:

 python (100), 2180 events, 97.3%

   syscall            calls  errors  total       min       avg       max       stddev
                                     (msec)    (msec)    (msec)    (msec)        (%)
   --------------- --------  ------ --------- --------- --------- ---------     ------
   epoll_wait            52      0   100.265   100.265   100.265   100.265      0.00%
   recvfrom              40      4     1.353     0.029     0.045     0.050      2.07%

 event_engine (101), 3 events, 0.1%

   syscall            calls  errors  total       min       avg       max       stddev
   --------------- --------  ------ --------- --------- --------- ---------     ------
   epoll_wait             8      0     0.265     0.265     0.265     0.265      0.00%
"""
STRACE = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 81.06    0.163841         163      1003         3 epoll_wait
  9.75    0.019700           9      2004           write
------ ----------- ----------- --------- --------- ----------------
100.00    0.202117          10      3007         3 total
"""


def test_system_calls_are_counted_thread_by_thread() -> None:
    found = system_calls.parse_perf(PERF_TRACE)
    assert found[0] == Counter(epoll_wait=60, recvfrom=40)
    assert found[100] == Counter(epoll_wait=52, recvfrom=40)
    assert found[101] == Counter(epoll_wait=8)


def test_system_calls_are_counted_without_threads_where_they_are_not_told() -> None:
    assert system_calls.parse_strace(STRACE) == {0: Counter(epoll_wait=1003, write=2004)}


def test_rare_system_calls_are_left_out_of_the_table_but_not_of_the_sum() -> None:
    table = system_calls.table("t", {"a": {"read": 1.0, "mmap": 0.01}, "b": {"read": 2.0}})
    assert table.rows == [["`read`", "1.00", "2.00"], ["**all**", "1.0", "2.0"]]


PERF_REPORT = """
# Overhead  Samples  Shared Object
    41.70%      417  [kernel.kallsyms]
    30.00%      300  libpython3.11.so.1.0
     5.00%       50  _asyncio.cpython-311-x86_64-linux-gnu.so
    15.20%      152  cygrpc.cpython-311-x86_64-linux-gnu.so
     8.10%       81  _message.abi3.so
"""


def test_samples_are_added_up_by_what_their_code_is() -> None:
    assert samples.parse(PERF_REPORT) == {
        "kernel": 417,
        "Python interpreter and its standard modules": 350,
        "gRPC (cygrpc)": 152,
        "protobuf (upb)": 81,
    }


SWITCHES = """
sched:sched_switch: python:100 [120] R ==> python:101 [120]
    ffffffff821f8b58 __schedule
              108f36 __GI___libc_write
        7efd07dc3340 [unknown]

sched:sched_switch: python:100 [120] R+ ==> sbx-runner:7 [120]
sched:sched_switch: prev_comm=a prev_pid=100 prev_state=S ==> next_comm=swapper/1 next_pid=0
sched:sched_switch: python:100 [120] R ==> cc1:9 [120]
"""


def test_switches_are_counted_by_who_came_next() -> None:
    own = {101: Thread(threads.QUEUE, Account())}
    parsed = switches.parse(SWITCHES)
    found = switches.count(parsed, switches.kinds(own, {5}, {7}))
    assert found == {
        f"its own thread: {threads.QUEUE}": 1,
        switches.RUNNER: 1,
        switches.NOBODY: 1,
        switches.OTHERS: 1,
    }
    assert "`write`" in switches.call_of(parsed[0])
    assert switches.call_of(parsed[1]) == switches.ELSEWHERE


def test_a_tool_that_is_not_installed_is_no_failure() -> None:
    with pytest.raises(NotMeasured, match="no-such-tool is not installed"):
        require("no-such-tool")


async def test_a_tool_that_may_not_look_says_why() -> None:
    with pytest.raises(NotMeasured, match="sh may not look: not permitted"):
        async with attached(["sh", "-c", "echo Error: >&2; echo not permitted. >&2; exit 1"]):
            pass


# --- a runner's life ------------------------------------------------------------------------------


def _life(until: str, faults: int, cpu_s: float, *marked: int) -> Life:
    made = dict(zip(nursery.MARKS, marked, strict=False))
    return Life(until, 1000, made, faults, cpu_s, 0.0)


def test_the_steps_of_a_life_are_differences() -> None:
    whole = [2000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000, 30_000]
    lives = [
        _life(nursery.BEGUN, 100, 0.001, 2000),
        _life(nursery.LOCKED, 150, 0.003, 2000, 4100),
        _life(nursery.CALLED, 190, 0.003, *whole),
    ]
    begun, locked, called = life.steps(lives)
    assert (begun.faults, locked.faults, called.faults) == (100, 50, 2)
    assert begun.time_s == pytest.approx(1e-6)
    assert locked.time_s == pytest.approx(2e-6)
    assert locked.cpu_s == pytest.approx(0.002)
    rows = life.table([begun, locked, called]).rows
    assert [row[-1] for row in rows] == ["1 ms", "2 ms", "within the noise"]


# --- the report -----------------------------------------------------------------------------------

ABOUT = report.Circumstances("abc", "2026-01-01T00:00:00+00:00", 0.5, quick=False)


def test_the_report_tells_tables_sentences_and_circumstances() -> None:
    told = report.told(Finding([Table("T:", ["a"], [["1"]]), Note("N.")]), ABOUT)
    assert told.startswith("T:\n\n| a |\n|---|\n| 1 |\n\nN.\n\n`make profile` at 2026-01-01")
    assert "commit abc" in told


def test_what_was_not_measured_says_why() -> None:
    assert report.told("perf is not installed", ABOUT).startswith(
        "Not measured: perf is not installed."
    )


def test_a_quick_run_is_told_as_one() -> None:
    assert "A quick run" in report.told(Finding([]), ABOUT._replace(quick=True))


def test_every_subject_has_its_place_in_the_committed_document() -> None:
    places = markers.names((ROOT / "docs" / "performance.md").read_text())
    assert {report.place(subject) for subject in command.SUBJECTS} <= set(places)


def test_a_failed_subject_leaves_its_place_as_it_was_and_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def good(_: Stage) -> Finding:
        return Finding([Note("new")])

    async def bad(_: Stage) -> Finding:
        raise RuntimeError("broken")

    async def lacking(_: Stage) -> Finding:
        raise NotMeasured("perf is not installed")

    subjects = (Subject("a", "A", good), Subject("b", "B", bad), Subject("c", "C", lacking))
    monkeypatch.setattr(command, "SUBJECTS", subjects)
    document = tmp_path / "d.md"
    document.write_text(
        "".join(f"<!-- bench: profile-{name} -->\nold\n<!-- end bench -->\n" for name in "abc")
    )
    result = CliRunner().invoke(command.main, ["--write", str(document)])
    assert result.exit_code == 1
    assert "broken" in result.output
    written = document.read_text()
    assert written.count("old") == 1
    assert "new" in written
    assert "Not measured: perf is not installed." in written


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_steps_of_a_real_daemons_calls_and_of_a_real_runners_life_are_found() -> None:
    stage = Stage(QUICK)
    found = await asyncio.gather(steps.measure(stage), life.measure(stage))
    first, *_ = found[0].parts
    assert isinstance(first, Table)
    assert len(first.rows) == len(points.STEPS) + 2  # two sums
    lives, *_ = found[1].parts
    assert isinstance(lives, Table)
    assert len(lives.rows) == len(nursery.MARKS)
