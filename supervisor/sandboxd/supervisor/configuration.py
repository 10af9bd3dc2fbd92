"""From settings to what each part of the daemon is given."""

from __future__ import annotations

import logging
import resource

from sandboxd.supervisor import endpoints
from sandboxd.supervisor.birth import PoolConfig
from sandboxd.supervisor.compilation import CompileConfig
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.outbox import file_bytes
from sandboxd.supervisor.services.modules import MAX_PUSHES
from sandboxd.supervisor.settings import MIB, Settings
from sandboxd.supervisor.store import Store
from sandboxd.supervisor.zygote import ChildLimits
from sandboxd.wire.v1 import control_pb2

log = logging.getLogger(__name__)

# What the interpreter and the engine need beside a guest's memory.
RUNNER_OVERHEAD_BYTES = 192 * MIB
# Threads of one runner: main, interrupt, and those that WASI input and output start.
RUNNER_THREADS = 16
# Descriptors: of a runner or compiler (socket, pidfd, status, outbox or artifact, interrupt pipe or
# module), and of everything else but artifacts and connections: pushes, three each, and what is
# always open.
DESCRIPTORS_PER_CHILD = 5
DESCRIPTORS_BESIDE = 3 * MAX_PUSHES + 64
# What a gRPC client takes if nothing is set. What an answer has beside its output is a backtrace, a
# receipt, and the wrapping of as many logs as it likes: so much at the most, seldom more than this.
STOCK_CLIENT_BYTES = 4 * MIB
BESIDE_OUTPUT_MOST = 16 * MIB
BESIDE_OUTPUT_BYTES = 64 * 1024
# Runners kept ready, and kept bound, if not told otherwise.
SPARES = AHEAD = 4
# Fewer than this are too few for an ordinary use.
MIN_CONNECTIONS = 64


def children_at_once(settings: Settings) -> int:
    """Runners and compilers at once, those that are dying included."""
    return 2 * settings.max_runners + settings.compilers + 8


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the hard limit does, and return how many that is.

    Connections and compiled modules hold one each, runners five; the soft limit of 1,024 that is
    usual is for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connection_limit(settings: Settings, descriptors: int) -> int:
    """Return how many connections there may be at once: what is left when all else has its share.

    Idle connections are free of charge for a client. Without this limit they could take every
    descriptor, and calls that are running would end for want of one.
    """
    children = DESCRIPTORS_PER_CHILD * children_at_once(settings)
    reserve = descriptors // 4 + children + DESCRIPTORS_BESIDE
    left = descriptors - reserve
    if left < MIN_CONNECTIONS:
        log.warning(
            "the limit of descriptors (RLIMIT_NOFILE) is %d and should be at least %d for %d "
            "runners: calls may be refused as OVERLOADED; raise it (LimitNOFILE=), or lower "
            "--max-runners",
            descriptors,
            (children + DESCRIPTORS_BESIDE + MIN_CONNECTIONS) * 4 // 3 + 1,
            settings.max_runners,
        )
    return max(left, min(MIN_CONNECTIONS, descriptors // 8))


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of the gRPC server: what the transport refuses before it costs anything here."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = connection_limit(settings, descriptors)
    return [
        # Of each address; beyond it, a connection is closed as soon as it is made.
        ("grpc.max_allowed_incoming_connections", max(1, connections // len(settings.listen))),
        ("grpc.max_receive_message_length", settings.max_message),
        # Answers are bounded by the output limit; this leaves room for what is beside it.
        ("grpc.max_send_message_length", settings.max_output + BESIDE_OUTPUT_MOST),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        # Per connection. Without it, a stream-reset flood costs a core (measured; it costs no more
        # with this than with a tenth of it). The transport also counts calls that are answered and
        # not yet forgotten, and refuses what is beyond: an honest client has half as many.
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 15 * 60_000),
        # A second daemon on the same port must fail, not share it.
        ("grpc.so_reuseport", 0),
    ]


def remarks(settings: Settings) -> list[str]:
    """What is allowed, but should be known: by whoever starts the daemon, or uses it."""
    found = _cuts(settings)
    if settings.insecure_tcp:
        found.append("TCP without TLS: every user of this machine can run guests")
    if settings.max_output > STOCK_CLIENT_BYTES - BESIDE_OUTPUT_BYTES:
        found.append(
            f"--max-output is {_in_words(settings.max_output)}: a stock gRPC client refuses "
            "answers above 4 MiB (RESOURCE_EXHAUSTED, from the client); for larger ones it must "
            "set grpc.max_receive_message_length, or what its language calls it, to "
            f"{settings.max_output + BESIDE_OUTPUT_MOST} or -1; sandboxctl and sandboxd.client do"
        )
    if settings.max_message > STOCK_CLIENT_BYTES:
        found.append(
            f"--max-message is {_in_words(settings.max_message)}: a request above 4 MiB passes "
            "clients and proxies only if their limit for what they send "
            "(grpc.max_send_message_length; none, in most languages) allows it"
        )
    return found


def _cuts(settings: Settings) -> list[str]:
    """Numbers of runners that were asked for and are not kept."""
    numbers = (
        ("--spare-runners", settings.spare_runners, spares(settings)),
        ("--ahead-runners", settings.ahead_runners, ahead(settings)),
    )
    return [
        f"{flag} is {asked}, and {kept} of them can be kept: --max-runners, which is "
        f"{settings.max_runners}, leaves room for no more"
        for flag, asked, kept in numbers
        if asked is not None and asked > kept
    ]


def _in_words(size: int) -> str:
    return f"{size / MIB:g} MiB"


def tls(settings: Settings) -> endpoints.Tls | None:
    """The files for TLS, or None; usage.py has seen to it that they are all given or none is."""
    given = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return endpoints.Tls(*given) if all(given) else None


def limit_policy(settings: Settings) -> LimitPolicy:
    """Defaults and maxima of calls; usage.py has seen to it that the former are not above."""
    default = CallLimits(
        settings.default_wall_time,
        settings.default_cpu_time,
        settings.default_memory,
        settings.default_table_elements,
        settings.default_output,
    )
    maximum = CallLimits(
        settings.max_wall_time,
        settings.max_cpu_time,
        settings.max_memory,
        settings.max_table_elements,
        settings.max_output,
    )
    return LimitPolicy(default, maximum)


def cgroups(settings: Settings, slots: int) -> control_pb2.Cgroups:
    """What the launcher does about control groups; `slots` is the number of children at once."""
    return control_pb2.Cgroups(
        mode=settings.cgroups,
        slots=slots,
        threads=RUNNER_THREADS,
        cpu_percent=settings.runner_cpu_percent,
    )


def spares(settings: Settings) -> int:
    """Runners kept ready. More of them would drive out those that are bound to a module."""
    asked = SPARES if settings.spare_runners is None else settings.spare_runners
    return min(asked, settings.max_runners // 2)


def ahead(settings: Settings) -> int:
    """Runners kept bound ahead of need; spares and they are no more than there may be at all."""
    quarter = settings.max_runners // 4
    if settings.ahead_runners is None:
        return min(AHEAD, quarter)
    # One of two or three is a good deal: only for who asks for it.
    return min(settings.ahead_runners, quarter or min(1, settings.max_runners // 2))


def pool_config(settings: Settings) -> PoolConfig:
    """Sizes and ages of the pool, and the limits of a runner."""
    lifetime_s = (settings.runner_max_age + settings.max_cpu_time) / 1000
    return PoolConfig(
        capacity=settings.max_runners,
        spares=spares(settings),
        ahead=ahead(settings),
        queue_capacity=settings.queue_capacity,
        max_executions=settings.runner_max_executions,
        max_age_s=settings.runner_max_age / 1000,
        idle_timeout_s=settings.runner_idle_timeout / 1000,
        max_output_bytes=settings.max_output,
        max_input_bytes=settings.max_message,
        limits=ChildLimits(
            data_bytes=settings.max_memory + settings.max_artifact + RUNNER_OVERHEAD_BYTES,
            # A backstop only: the supervisor's clock is the limit. It must never fire first.
            cpu_seconds=int(lifetime_s * RUNNER_THREADS) + 60,
            # It writes no file: the outbox is mapped before the lock-down.
            file_size_bytes=0,
            shared_bytes=file_bytes(settings.max_output, settings.max_message) + 64 * 1024,
            processes=0,
        ),
    )


def store(settings: Settings) -> Store:
    """Where modules are kept, and how many; not open yet."""
    return Store(
        settings.state_dir, settings.max_module, settings.max_modules, settings.module_disk
    )


def compile_config(settings: Settings) -> CompileConfig:
    """Limits of the compiler."""
    return CompileConfig(
        concurrency=settings.compilers,
        queue_capacity=settings.compile_queue,
        wall_time_s=settings.compile_wall_time / 1000,
        max_artifact_bytes=settings.max_artifact,
        limits=ChildLimits(
            data_bytes=settings.compile_memory,
            cpu_seconds=max(1, settings.compile_cpu_time // 1000),
            file_size_bytes=settings.max_artifact,
            shared_bytes=settings.max_artifact,
            processes=0,
        ),
    )
