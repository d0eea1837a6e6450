"""The measured coefficients of the model, and the JSON that holds them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from loadtests.capacity.workload import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


T = TypeVar("T", "ServiceCost", "RedisCost", "DatabaseCost", "Sizes")


class InvalidCalibration(ValueError):  # noqa: N818 - says what is the matter
    """A file holds no calibration; the message says what is missing or wrong."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """The processor time of one component, in seconds, for each thing that it does.

    Attributes:
        idle: for each second of its life.
        wakeup: for each wake-up: an event that arrives while the component waits for events.
            The busier a component is, the more events it finds at once, and the fewer wake-ups
            there are.
    """

    idle: float
    wakeup: float


@dataclass(frozen=True, kw_only=True)
class ServiceCost(Component):
    """Of a service process, with one backend.

    Attributes:
        poll: for a poll that is answered from the cache; on null, from the database.
        conditional: more than that, for a poll with `If-None-Match`, which a 304 answers.
        load: more than `poll`, for a poll that loads from the database.
        refill: more than `poll`, for a poll of tiered that reads Redis; 0 elsewhere.
        update: for an update of a job.
        report: for each changed key that the change feed of tiered reports; 0 elsewhere.
    """

    poll: float
    conditional: float
    load: float
    refill: float
    update: float
    report: float


@dataclass(frozen=True, kw_only=True)
class RedisCost(Component):
    """Of a Redis server, which has one thread for commands.

    Attributes:
        get: for each key that is read.
        script: for each call of a script: a lease, a fence or a publish.
        report: for each changed key that is reported to one process.
    """

    get: float
    script: float
    report: float


@dataclass(frozen=True, kw_only=True)
class DatabaseCost:
    """Of the database server, all of its processes together.

    Attributes:
        select: for each query of a poll.
        update: for each transaction that changes a job.
    """

    select: float
    update: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes.

    Attributes:
        response: of a response to a poll, beyond the body.
        not_modified: of a response with status 304.
        get: sent and received by Redis for each key that is read, beyond the body.
        script: sent and received by Redis for each call of a script, beyond the body.
        report: sent by Redis for each changed key and process.
        process: memory of a service process without clients and entries.
        connection: memory of a service process for each connection.
        entry: memory of a service process for each entry, beyond the body.
        redis: memory of an empty Redis server.
        redis_entry: memory of Redis for each entry, beyond the body.
    """

    response: float
    not_modified: float
    get: float
    script: float
    report: float
    process: float
    connection: float
    entry: float
    redis: float
    redis_entry: float


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """All coefficients of one machine.

    Attributes:
        services: by backend.
        redis: of a Redis server.
        database: of the database server.
        sizes: bytes of messages and memory.
        origin: date, machine, Python and commit of the calibration.
    """

    services: Mapping[str, ServiceCost]
    redis: RedisCost
    database: DatabaseCost
    sizes: Sizes
    origin: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write the coefficients as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")


def load(path: Path) -> Coefficients:
    """Return the coefficients that a calibration has saved.

    Raises:
        InvalidCalibration: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        return Coefficients(
            services={name: _read(ServiceCost, document["services"][name]) for name in BACKENDS},
            redis=_read(RedisCost, document["redis"]),
            database=_read(DatabaseCost, document["database"]),
            sizes=_read(Sizes, document["sizes"]),
            origin={str(name): str(text) for name, text in document["origin"].items()},
        )
    except OSError as error:
        raise InvalidCalibration(
            f"{path} cannot be read ({error.strerror}); `python -m loadtests capacity calibrate`"
            " writes such a file"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidCalibration(f"{path} is no calibration: {error}") from error
    except KeyError as error:
        raise InvalidCalibration(f"{path} is no calibration: it has no {error}") from error


def _read(kind: type[T], found: Any) -> T:  # noqa: ANN401 - any JSON
    values = {}
    for field in fields(kind):
        value = float(found[field.name])
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{field.name} is {value}; a number of at least 0 is needed")
        values[field.name] = value
    return kind(**values)
