"""What `dev` and `serve` have in common: settings from words, structured logs, a signal to stop, a file for "ready".

Owns the running of a hub inside this process. Must never: make a key or a certificate, or log what a caller sent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from erxhub.app import Hub, start_hub
from erxhub.cli.local_errors import Failed, failing_as
from erxhub.config import Config
from erxhub.crypto.certs import iso_time
from erxhub.high_water import HighWaterUnreadable
from erxhub.keys import ForeignKeys, HubKeys
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.process import settle_memory
from erxhub.proof.notes import valid_name
from erxhub.proof.policy import Policy
from erxhub.rpc.server import IdentitySource, Layer
from erxhub.starting import LedgerRefused

_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


def configured(config: Config, settings: Iterable[str]) -> Config:
    """The config with KEY=VALUE settings applied. Raises Failed for a key that does not exist and a wrong value.

    And for names that nobody can have: the origin is the first thing that a ledger says, and never changed.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in fields:
            keys = ", ".join(sorted(fields))
            raise Failed("CLI_SETTING_UNKNOWN", field="--config", setting=setting, keys=keys)
        changed[key] = _value(fields[key], text, setting)
    with failing_as("CLI_SETTING_BOUNDS", ValueError, field="--config"):
        config = dataclasses.replace(config, **changed)
    if not valid_name(config.origin):
        raise Failed("CLI_ORIGIN", field="--origin", origin=config.origin)
    if not config.hub_id:
        raise Failed("CLI_HUB_ID", field="--hub-id")
    return config


def _value(default: Any, text: str, setting: str) -> Any:
    # A bool is an int too, so it comes first.
    if isinstance(default, bool):
        if text.lower() not in _TRUE | _FALSE:
            raise Failed("CLI_SETTING_TRUTH", field="--config", setting=setting)
        return text.lower() in _TRUE
    if isinstance(default, int):
        if not (text.isascii() and text.isdecimal()):
            raise Failed("CLI_SETTING_NUMBER", field="--config", setting=setting)
        return int(text)
    if isinstance(default, tuple):
        # Not even "none" is written as an empty value: a forgotten variable must not mean "everybody".
        parts = tuple(part.strip() for part in text.split(","))
        if not all(parts):
            raise Failed("CLI_SETTING_LIST", field="--config", setting=setting)
        return parts
    if not text:
        raise Failed("CLI_SETTING_EMPTY", field="--config", setting=setting)
    return text


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, the facts of a call, and the kind of an error with its place.

    An exception's own text is left out: it may quote what a caller sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": iso_time(int(record.created * 1000)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "call", {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["place"] = _place(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False)


def _place(trace: Any) -> list[str]:
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return places[-8:]


def log_to_stderr(level: str = "INFO") -> None:
    """Every logger's records as JSON lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def write_ready(path: Path | None, **facts: object) -> None:
    """The file that says that the hub takes calls; it appears whole or not at all."""
    if path is None:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    unfinished.replace(path)


async def started(
    store: Store,
    identity: IdentitySource,
    keys: HubKeys,
    address: str,
    config: Config,
    layers: Sequence[Layer] = (),
    high_water: Path | None = None,
    witnesses: Policy | None = None,
) -> Hub:
    """The hub, listening. Otherwise the store is closed and Failed says why."""
    try:
        hub = await start_hub(
            store,
            identity,
            keys,
            address=address,
            config=config,
            layers=layers,
            high_water=high_water,
            witnesses=witnesses,
        )
    except (LedgerRefused, HighWaterUnreadable) as error:
        raise Failed("CLI_LEDGER_REFUSED", field="--db", details=str(error)) from None
    except ForeignKeys as error:
        raise Failed("CLI_FOREIGN_KEYS", field="--keys", details=str(error)) from None
    except StoreUnavailable as error:
        raise Failed("CLI_DATABASE_UNAVAILABLE", field="--db", details=str(error), name="--db") from None
    except RuntimeError as error:
        raise unlistenable(error) from None
    settle_memory()
    return hub


def unlistenable(error: RuntimeError) -> Failed:
    """What gRPC says of an address on which it cannot listen: it has no other error for that."""
    words, hint, _ = str(error).partition("; set GRPC_VERBOSITY")
    if not hint:
        return Failed("CLI_NOT_STARTED", details=words)
    address = words.rpartition(" ")[2]
    return Failed("CLI_ADDRESS_TAKEN", field=address, details=words, address=address)


async def until_stopped(hub: Hub, stopping: asyncio.Event) -> None:
    """Waits for SIGINT or SIGTERM, then drains: calls in flight are answered, new ones are not taken."""
    await stopping.wait()
    await hub.stop()


def stop_signal() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set, from now on instead of ending the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopping.set)
        except NotImplementedError:
            # A Windows loop takes no handlers; the plain one runs between two steps of the loop.
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopping.set))
    return stopping


def stop_at_end_of_input(stopping: asyncio.Event) -> None:
    """Set the event when standard input ends, as it does when whoever holds its other end is gone, however he ended."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        with suppress(OSError):
            # Read past Python's buffer: its lock would hold up the end of the process.
            while os.read(0, 4096):
                continue
        with suppress(RuntimeError):
            # The loop may be over already.
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, name="end of input", daemon=True).start()
