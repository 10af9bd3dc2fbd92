"""The parts of a daemon that do its work, made from the settings and put together."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.supervisor import configuration
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.artifacts import ArtifactCache
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves calls and pushes, without zygote and server: nothing is open or forked yet."""

    stats: Stats
    store: Store
    cache: ArtifactCache
    artifacts: ArtifactStore
    compiles: CompileService
    pool: Pool
    executor: Executor

    @classmethod
    def of(cls, settings: Settings) -> Parts:
        """Make them; raises the limit of descriptors, too."""
        descriptors = configuration.raise_descriptor_limit()
        stats = Stats()
        store = configuration.store(settings)
        cache = ArtifactCache(settings.artifact_cache, descriptors // 4)
        artifacts = ArtifactStore(
            settings.artifact_disk,
            settings.max_artifact,
            is_stored=lambda tenant, digest: store.get(tenant, digest) is not None,
        )
        compiles = CompileService(configuration.compile_config(settings), cache, artifacts)
        pool = Pool(configuration.pool_config(settings))
        executor = Executor(
            pool,
            compiles,
            store,
            configuration.limit_policy(settings),
            stats,
            settings.grace / 1000,
            settings.queue_bytes,
        )
        return cls(stats, store, cache, artifacts, compiles, pool, executor)
