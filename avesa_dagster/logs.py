"""Logs as JSON, one object a line: for CloudWatch Logs, and whatever else reads machines' lines.

| field | meaning |
| --- | --- |
| `time` | ISO 8601, UTC, milliseconds |
| `level` | `debug`, `info`, `warning`, `error`, `critical` |
| `logger`, `message` | as in the text logs |
| `tenant`, `service`, `table`, `window` | whose data it is about |
| `run`, `job` | Dagster's run, AVESA's backfill job |
| `step`, `event` | of Dagster's own events: `STEP_FAILURE` |
| `exception` | `type` and `text`, with the traceback |

What is not known stays out. Whose data it is comes from the error that is logged, from the `place`
that the thread is in, or from the tags of Dagster's run, in this order. AVESA_LOGS=json switches it
on (`configure`); Dagster's events need the formatter in `python_logs` of dagster.yaml besides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from avesa_dagster.errors import AvesaError, ConfigurationError, Where

VARIABLE = "AVESA_LOGS"

_PLACE = ("tenant", "service", "table", "window", "run", "job")
_TAGS = {"tenant": "avesa/tenant", "service": "avesa/service", "job": "avesa/job"}
"""Of Dagster's runs, as in `defs.tags`, which this module must not import."""
_LANE = "avesa/lane"
"""`backfill/{tenant}/{service}`: of each run that was queued, those from the UI too."""
_MESSAGE = 4000
"""Characters of a message; containers' log drivers cut a line at 16 KB."""
_TRACE = 6000
"""Characters of a traceback: its end, which names the cause."""
_MOST_CAUSES = 20
_DAGSTER = ("dagster", "dagster-webserver")
"""Loggers that Dagster's commands give handlers of their own."""

_place: ContextVar[Mapping[str, str]] = ContextVar("avesa_place", default=MappingProxyType({}))


@contextmanager
def place(
    *,
    tenant: str | None = None,
    service: str | None = None,
    table: str | None = None,
    window: str | None = None,
    run: str | None = None,
    job: str | None = None,
) -> Iterator[None]:
    """What is logged in the block, by this thread, is about these; None keeps what holds outside.

    A new thread begins without a place: it takes one of its own.
    """
    given = zip(_PLACE, (tenant, service, table, window, run, job), strict=True)
    token = _place.set({**_place.get(), **{name: value for name, value in given if value}})
    try:
        yield
    finally:
        _place.reset(token)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object in one line of ASCII.

    Takes no arguments, so that `logging.config` can make it: `class: avesa_dagster.logs...`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        dagster: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
        event = dagster.get("dagster_event")
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _head(dagster.get("orig_message") or record.getMessage()),
            **_of_run(dagster, event),
            **_place.get(),
            **_of_errors(record),
        }
        if step := dagster.get("step_key"):
            line["step"] = step
        if event is not None:
            line["event"] = str(getattr(event, "event_type_value", ""))
        if exception := self._exception(record) or _told_by(event):
            line["exception"] = exception
        return json.dumps(line, default=str)

    def _exception(self, record: logging.LogRecord) -> dict[str, str] | None:
        if not record.exc_info or record.exc_info[0] is None:
            return None
        text = self.formatException(record.exc_info)
        return {"type": record.exc_info[0].__name__, "text": _tail(text)}


class _JsonHandler(logging.StreamHandler[Any]):
    """Ours, so that it is not added twice."""


def configure(environ: Mapping[str, str]) -> None:
    """Lets this process log to standard error as AVESA_LOGS says. May be called again.

    Unset, or `text`: nothing is changed. `json`: every record, those of Dagster's commands too, is
    a line of JSON; warnings of libraries, and what AVESA itself says from INFO on.

    Raises:
        ConfigurationError: It says something else.
    """
    wanted = environ.get(VARIABLE) or "text"
    if wanted not in ("json", "text"):
        raise ConfigurationError(f"{VARIABLE} is {wanted!r}", hint="known: json, text")
    root = logging.getLogger()
    if wanted == "text" or any(isinstance(handler, _JsonHandler) for handler in root.handlers):
        return
    handler = _JsonHandler()
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    logging.getLogger("avesa_dagster").setLevel(logging.INFO)
    for logger in map(logging.getLogger, _DAGSTER):
        for other in list(logger.handlers):  # its records reach the root's, and would be told twice
            if isinstance(other, logging.StreamHandler) and logger.propagate:
                logger.removeHandler(other)


def _of_run(dagster: Mapping[str, Any], event: object) -> dict[str, str]:
    """What Dagster says of the run that a record is of."""
    tags = dagster.get("job_tags") or {}
    step, path = str(dagster.get("step_key") or ""), _asset_of(event)
    found: dict[str, str] = {}
    match str(tags.get(_LANE, "")).split("/"):
        case [_, tenant, service]:
            found = {"tenant": tenant, "service": service}
    found |= {name: str(tags[tag]) for name, tag in _TAGS.items() if tags.get(tag)}
    if run := dagster.get("run_id"):
        found["run"] = str(run)
    match path or step.split("__"):
        case [tenant, "raw" | "canonical", service, table]:
            found |= {"tenant": tenant, "service": service, "table": table}
        case [tenant, "history", table]:
            found |= {"tenant": tenant, "table": table}
        case _:
            if (known := _table_of_step(step, found)) is not None:
                found["table"] = known
    return found


def _asset_of(event: object) -> list[str]:
    """The path of the asset that a Dagster event is about; empty if it is about none."""
    return list(getattr(getattr(event, "asset_key", None), "path", None) or ())


def _table_of_step(step: str, found: Mapping[str, str]) -> str | None:
    """The table of a step `acme_corp__raw__connectwise__tickets__n3`, which stands for several
    tables if there is a `_` in what may be its name.

    With a `-` in any of its names a step has `_` in place of each, and `__n` and the connection's
    number behind it (`defs.keys.op_name`).
    """
    tenant, service = found.get("tenant", ""), found.get("service", "")
    for layer in ("raw", "canonical"):
        names = "__".join((tenant, layer, service, ""))
        table, marked, number = step[len(names) :].rpartition("__n")
        if not (tenant and service and step.startswith(names.replace("-", "_"))):
            continue
        if not (marked and number.isdigit()):
            return step[len(names) :]
        return table if "-" in names and "_" not in table else None
    return None


def _of_errors(record: logging.LogRecord) -> dict[str, str]:
    """Whose data the record is about, by the errors that it is told with."""
    error = record.exc_info[1] if record.exc_info else None
    wheres = [where for where in map(_where_of, _chain(error)) if where]
    if isinstance(record.args, tuple):
        wheres += [where for where in map(_where_of, record.args) if where]
    found: dict[str, str] = {}
    for where in wheres:
        for name in ("tenant", "service", "table", "window"):
            if name not in found and (value := getattr(where, name)):
                found[name] = value
    return found


def _where_of(told: object) -> Where | None:
    if isinstance(told, AvesaError):
        return told.where
    return told if isinstance(told, Where) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what caused it, the last first."""
    for _ in range(_MOST_CAUSES):  # a chain may be a ring
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told_by(event: object) -> dict[str, str] | None:
    """The error of a Dagster event that tells of one."""
    error = getattr(getattr(event, "event_specific_data", None), "error", None)
    if error is None:
        return None
    raised = error
    while raised.cause is not None and _wraps(str(raised.cls_name)):
        raised = raised.cause
    return {"type": str(raised.cls_name), "text": _tail(error.to_string())}


def _wraps(name: str) -> bool:
    """Whether an error of this name is Dagster's, around the one that was raised."""
    return name == "Failure" or name.startswith("Dagster")


def _time(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _head(text: str) -> str:
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 1]}…"


def _tail(text: str) -> str:
    return text if len(text) <= _TRACE else f"…{text[1 - _TRACE :]}"
