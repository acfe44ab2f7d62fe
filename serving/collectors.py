"""What is told at the moment of a scrape and counted nowhere: models, build, processes."""

import platform
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import tilesight
from serving.answers import Model
from serving.sharing import Shared

# What a runtime may tell of how it runs a model, beside what every answer says of it.
_HOW = ("threads", "sessions", "batch")


class Models(Collector):
    """The models that are served: all workers follow one repository, so each can tell."""

    def __init__(self) -> None:
        """No model yet."""
        self._samples: list[dict[str, str]] = []

    def replace(
        self, infos: Iterable[Model], details: Mapping[str, Mapping[str, str | int]]
    ) -> None:
        """Tells of these models from now on, and of no others."""
        self._samples = [
            {name: str(value) for name, value in info.model_dump().items()}
            | {name: str(details.get(info.name, {}).get(name, "")) for name in _HOW}
            for info in infos
        ]

    def collect(self) -> Iterator[Metric]:
        """A 1 for each model."""
        family = GaugeMetricFamily("tilesight_model_info", "1 for each model that is served.")
        for labels in self._samples:
            family.add_sample(family.name, labels, 1.0)
        yield family


class Build(Collector):
    """Which Tilesight this is."""

    def collect(self) -> Iterator[Metric]:
        """A 1."""
        family = GaugeMetricFamily(
            "tilesight_build_info", "1 for the version that runs.", labels=["version", "python"]
        )
        family.add_metric([tilesight.__version__, platform.python_version()], 1.0)
        yield family


class Processes(Collector):
    """Memory, processor time and files of each worker, told by whichever is asked."""

    def __init__(self, shared: Shared) -> None:
        """The workers of the folder."""
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        """The usual metrics of a process, with the worker's slot as a label."""
        families: dict[str, Metric] = {}
        for slot, pid in sorted(self._shared.pids().items()):
            for one in _process(pid):
                family = families.setdefault(
                    one.name, Metric(one.name, one.documentation, one.type)
                )
                for sample in one.samples:
                    family.add_sample(sample.name, {"worker": str(slot)}, sample.value)
        return iter(families.values())


def _process(pid: int) -> Iterable[Metric]:
    """The usual metrics of the process; none if it has just ended."""
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
