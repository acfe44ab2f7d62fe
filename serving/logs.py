"""The log: one JSON object a line on standard error."""

import asyncio
import atexit
import json
import logging
import logging.config
import os
import sys
import time
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, the fields given as `extra` included."""

    def __init__(self, **always: object) -> None:
        """A formatter that adds the fields of `always` to every line."""
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        } | self._always
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in _STANDARD and value is not None
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


# What POSIX promises to write to a pipe in one piece.
_WHOLE_BYTES = 4096
_SOON_S = 0.02


class Lines:
    """Lines of one event, written by hand: a record of `logging` costs as much as a request.

    The lines of some milliseconds are one `write` to the file descriptor of standard error: each
    gives up the interpreter and waits for it again, behind the threads that decode. A crash loses
    these milliseconds. A write is short enough to be whole in a pipe that several workers share.
    """

    def __init__(self, logger: str, event: str) -> None:
        """Lines that are written where the logger is on, as all of its other lines are."""
        self._logger = logging.getLogger(logger)
        fields = ", ".join(
            f"{encode_basestring(name)}: {_encoded(value)}"
            for name, value in ({"level": "info", "logger": logger, "event": event}).items()
        )
        self._fixed = f'", {fields}'
        self._second = 0
        self._prefix = ""

    def write(self, **fields: str | float | None) -> None:
        """Writes a line with the fields that are not None, soon; in the event loop."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        parts = [self._beginning()]
        for name, value in fields.items():
            if value is not None:
                parts.append(f', "{name}": {_encoded(value)}')
        parts.append("}\n")
        _waiting.add("".join(parts).encode("utf-8", "backslashreplace"))

    def _beginning(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            stamp = datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")
            self._second, self._prefix = second, f'{{"time": "{stamp.removesuffix("+00:00")}.'
        worker = f', "worker": {_worker}' if _worker is not None else ""
        return f"{self._prefix}{int((now - second) * 1000):03d}+00:00{self._fixed}{worker}"


class _Waiting:
    """The lines that are not written yet."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, line: bytes) -> None:
        if self._size + len(line) > _WHOLE_BYTES:
            self.flush()
        if not self._lines:
            asyncio.get_running_loop().call_later(_SOON_S, self.flush)
        self._lines.append(line)
        self._size += len(line)

    def flush(self) -> None:
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        try:
            os.write(_descriptor(), b"".join(lines))
        except OSError:
            # No request may fail because nobody reads the log.
            return


_waiting = _Waiting()


@atexit.register
def flush() -> None:
    """Writes the lines that wait; what cannot be written is lost."""
    _waiting.flush()


_worker: int | None = None


def configure(worker: int | None = None) -> None:
    """From now on there is a log; each line names the worker where there are several."""
    global _worker
    _worker = worker
    always = {} if worker is None else {"worker": worker}
    logging.config.dictConfig(
        CONFIG | {"formatters": {"json": {"()": "serving.logs.JsonFormatter", **always}}}
    )


def _descriptor() -> int:
    """Where standard error goes now."""
    return sys.stderr.fileno() if sys.stderr is not sys.__stderr__ else 2


def _encoded(value: str | float) -> str:
    return encode_basestring(value) if isinstance(value, str) else repr(value)


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "serving.logs.JsonFormatter"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "json",
            "stream": "ext://sys.stderr",
        }
    },
    "loggers": {
        "tilesight": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
