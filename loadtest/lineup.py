"""Who takes part in a comparison: started, at its best setting, and answering the same."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.bare import BareProcess, Setting, best, reference
from loadtest.client import Plan
from loadtest.generator import Generator
from loadtest.kinds import KINDS, Kind, Place
from loadtest.rounds import BARE, measured
from loadtest.servers import Server, ServerError, disagreement

SETTINGS = "settings.json"
_TRY_S, _TRY_CONNECTIONS = 1.2, 8
_CHECKED_TILES = 5


@dataclass(frozen=True)
class Choice:
    """Who is wanted, and how hard the best setting is looked for."""

    only: Sequence[str] | None
    known: Path | None  # settings of a run before
    search: bool
    cores: int
    also: Sequence[str] = ()

    def wants(self, kind: Kind) -> bool:
        """Whether it shall take part."""
        if kind.name in self.also:
            return True
        return not kind.optional if self.only is None else kind.name in self.only


class LineUp:
    """Finds settings and starts servers; `settings` and `left_out` say what came of it."""

    def __init__(
        self,
        choice: Choice,
        place: Place,
        plan: Plan,
        tiles: Sequence[bytes],
        generator: Generator,
        bare: BareProcess,
        console: Console,
    ) -> None:
        """`plan` says which tiles and questions are sent; its path is the endpoint's."""
        self._choice, self._place, self._plan = choice, place, plan
        self._tiles, self._generator, self._bare = tiles, generator, bare
        self._console = console
        self._file = place.logs.parent / SETTINGS
        self.settings: dict[str, Any] = self._known()
        self.left_out: dict[str, str] = {}

    def bare_setting(self) -> Setting:
        """The best setting of the bare loop."""
        if BARE not in self.settings:
            self._console.print(f"{BARE}: looking for the best setting")
            found = best(self._bare.loop, self._choice.cores, _TRY_S / 2)
            self._keep(BARE, vars(found))
        return Setting(**self.settings[BARE]["setting"])

    def start(self, stack: ExitStack) -> list[Server]:
        """Everybody who is wanted and can be started, paused; stopped with the stack."""
        started = []
        for kind in KINDS:
            if not self._choice.wants(kind) or (kind.script is not None and not self._place.labels):
                continue  # the peers serve labels
            try:
                server = self._started(kind, self._setting(kind))
            except ServerError as error:
                self.left_out[kind.name] = str(error).splitlines()[0]
                self._console.print(f"[yellow]{kind.title} is left out:[/] {error}")
                continue
            stack.callback(server.stop)
            if kind.script is None:
                self._keep(kind.name, self._served_how(server))
            server.pause()
            started.append(server)
        return started

    # --- One server

    def _started(self, kind: Kind, setting: dict[str, Any]) -> Server:
        self._console.print(f"{kind.title}: starting {json.dumps(setting) if setting else ''}")
        server = Server(kind, setting, self._place, self._plan.url)
        try:
            server.wait_ready(self._tiles[0], self._plan.questions)
            if self._place.labels:
                self._check(server)
        except BaseException:
            server.stop()
            raise
        return server

    def _check(self, server: Server) -> None:
        """Whoever answers something else is not compared."""
        graph = self._place.exact_graph if server.kind.exact else self._place.graph
        tiles = self._tiles[:_CHECKED_TILES]
        rows = reference(graph, tiles, self._place.height, self._place.width)
        for tile, expected in zip(tiles, rows.tolist(), strict=True):
            named = dict(zip(self._place.labels, expected, strict=True))
            wrong = disagreement(server.ask(tile), named, server.kind.tolerance)
            if wrong is not None:
                raise ServerError(f"it answers something else: {wrong}")

    def _served_how(self, server: Server) -> dict[str, Any]:
        """What the gateway itself says of the model that it runs."""
        models = server.get("/models")["models"]
        found: dict[str, Any] = next(one for one in models if one["name"] == self._place.model)
        return dict(found["runtime"])

    # --- Settings

    def _setting(self, kind: Kind) -> dict[str, Any]:
        if kind.script is None:
            return {}  # what the gateway chooses by itself
        if kind.name not in self.settings:
            tried = self._tried(kind) if self._choice.search and len(kind.settings) > 1 else []
            winner = max(tried, key=lambda one: float(one["relative"])) if tried else None
            self._keep(kind.name, winner["setting"] if winner else kind.settings[0], tried)
        return dict(self.settings[kind.name]["setting"])

    def _tried(self, kind: Kind) -> list[dict[str, Any]]:
        """Every setting that works, with its answers a second beside the bare loop's."""
        tried: list[dict[str, Any]] = []
        failure: ServerError | None = None
        for setting in kind.settings:
            try:
                tried.append({"setting": setting, "relative": self._rate(kind, dict(setting))})
            except ServerError as error:
                failure = error
        if failure is not None and not tried:
            raise failure
        return tried

    def _rate(self, kind: Kind, setting: dict[str, Any]) -> float:
        """Answers a second over those of the bare loop just before and after."""
        limit = self.bare_setting()
        before = self._bare.loop(limit, _TRY_S / 3)["throughput_rps"]
        server = self._started(kind, setting)
        try:
            plan = self._plan.to(server.url, connections=_TRY_CONNECTIONS, seconds=_TRY_S)
            rate = measured(server, self._generator, plan)["goodput_rps"]
        finally:
            server.stop()
        after = self._bare.loop(limit, _TRY_S / 3)["throughput_rps"]
        return float(rate / ((before + after) / 2))

    def _known(self) -> dict[str, Any]:
        for path in (self._file, self._choice.known):
            if path is not None and path.is_file():
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return found
        return {}

    def _keep(self, name: str, setting: Any, tried: Sequence[Any] = ()) -> None:  # noqa: ANN401
        self.settings[name] = {"setting": setting, "tried": list(tried)}
        self._file.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
