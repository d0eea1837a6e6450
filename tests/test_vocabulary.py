"""Names that the project no longer uses do not come back, and a shared name has one meaning."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("jobcache", "app", "benchmarks", "loadtests", "examples", "tests")

RETIRED = {
    # writing and reading
    "Offered": "PublishResult",
    "Offers": "Publisher",
    "make_surely": "publish_shielded",
    "unkept": "version_only",
    "offer": "publish",
    "Standing": "LeaseResult",
    "Answer": "ReadResult",
    "Answers": "ReadResults",
    "Outcome": "CacheOutcome",
    "ticket": "token",
    "tickets": "tokens",
    "Writes": "WriteCoordinator",
    "Waiting": "Watchers",
    "Looks": "Readers",
    "CheckTimes": "PollIntervals",
    "wait_newer": "wait_for_newer",
    "stop_waiting": "cancel_waiters",
    "Later": "DeferredResponse, or Deferred",
    "Laters": "DeferredResponseMiddleware",
    # what a backend is able to do, and how it is
    "Condition": "Health",
    "FeedCondition": "FeedStatus",
    "holdings": "size",
    "Starts": "SupportsStart",
    "Announces": "SupportsChangeFeed",
    "Watched": "SupportsHealth",
    "Drop": "SupportsDiscard",
    "Ask": "SupportsCallbackGet, or Request",
    "Remember": "SupportsVersionHint",
    # tasks, batches and failures
    "Shelter": "ShieldedTasks",
    "Together": "Batcher",
    "Turn": "TickBuffer",
    "side_by_side": "gather_all",
    "Missed": "ReplayLog",
    "Guard": "GuardedBackend",
    "distrust": "reset",
    "unsettled": "pending",
    "_readmit": "close_circuit",
    "_tell": "replay, or the name of the notification",
    "_doubt": "mark_suspect",
    "settle": "join, or run_ready",
    "Step": "the name of the operation",
    "Then": "the type of the callback",
    # Redis
    "Lane": "PipelinedConnection",
    "NoLane": "NotPipelinable",
    "overhears": "on_push",
    "_Way": "ConnectionSlot",
    "_lay": "connect",
    "stamp": "incarnation_id",
    "wonder": "verify_identity",
    "Lone": "SingleServer",
    "Where": "RedisURL",
    "Place": "Endpoint",
    "tracking_line": "the tracking connection",
    "vouch": "confirm",
    "beat": "heartbeat",
    "near": "local",
    "far": "remote",
    # threads and the throttle
    "farewell": "close",
    "_Errand": "the callback request",
    "hurry": "flush",
    "bridge": "the loop thread",
    # the client
    "Pause": "Sleep",
    "News": "Update",
    # the service
    "BoundedHead": "header_limits",
    "HotWire": "FastPathProtocol",
    "HotPolls": "PollFastPath",
    "unless_gone": "cancel_on_disconnect",
    "Move": "Transition",
    "IllegalMove": "IllegalTransition",
    "half_done": "find_unfinished",
    "TO_MOVE": "RUNNABLE",
    "seen_by": "require_visible",
    "Gate": "AuthMiddleware",
    "Admission": "Authenticator",
    "presented": "bearer_token",
    "Parts": "Services",
    "wiring": "container",
    "sees": "can_view",
    "space_out_collections": "tune_garbage_collection",
    "PacedRenderer": "SimulatedRenderer",
    "Outage": "OutageLogger",
}
"""Retired names, and the standard term that stands in place of each."""

RETIRED_MODULES = {
    "_bridge": "_loop_thread",
    "guard": "guarded_backend",
    "heads": "header_limits",
    "held": "held_requests, long_poll_scale",
    "hot": "poll_fast_path",
    "idle": "connection_timer",
    "known": "replay_log, invariants",
    "lane": "pipelined_connection",
    "measured": "suites",
    "missed": "replay_log",
    "pacing": "_throttle_policy",
    "poll": "conditional_get",
    "promise": "invariants",
    "redis_server": "server",
    "schedules": "simulation",
    "shelter": "tasks",
    "steady": "open_loop",
    "together": "batching",
    "turns": "interleaving",
    "usage": "process_cpu",
    "wiring": "container",
    "world": "simulator",
}

RETIRED_WORDS = {
    "lane": "pipelined connection",
    "overhears": "receives a push",
    "paced renderer": "simulated renderer",
    "shelter": "shielded tasks",
    "ticket": "token",
    "unsettled": "pending",
    "vouches": "confirms",
    "far tier": "remote tier",
    "near tier": "local tier",
}
"""Words of comments, docstrings and documents that no longer stand for anything."""

ONE_IDEA_IN_TWO_PLACES = {
    "JobCache": "asynchronous, and for threads",
    "Throttle": "asynchronous, and for threads",
    "Write": "asynchronous, and for threads",
    "Job": "a row, and the client's view of it",
    "NewJob": "a row, and the client's view of it",
    "Finding": "of the explorer, and of the checker of interleavings",
    "Report": "of the explorer, and of the checker of interleavings",
}
"""Names that two modules share on purpose, because they mean the same."""


def sources(*packages: str, suffix: str = ".py") -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob(f"*{suffix}"))]
    assert found
    return found


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that a module defines, with its line; names of other libraries are not."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name, node.lineno
            case ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, 0


def test_no_file_defines_a_retired_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} is {RETIRED[name]}"
        for path in sources(*PACKAGES)
        for name, line in defined(ast.parse(path.read_text("utf-8")))
        if name in RETIRED
    ]
    assert found == []


def test_no_script_uses_a_retired_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sources("jobcache", "benchmarks", suffix=".lua")
        for word in re.findall(r"\w+", re.sub(r"--.*", "", path.read_text("utf-8")))
        if word in RETIRED
    ]
    assert found == []


def test_no_text_uses_a_retired_word() -> None:
    retired = re.compile(rf"\b({'|'.join(RETIRED_WORDS)})s?\b", re.IGNORECASE)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word[1]} is {RETIRED_WORDS[word[1].lower()]}"
        for path in [*sources(*PACKAGES[:-1]), *sources("jobcache", suffix=".lua"), *pages]
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for word in retired.finditer(line)
    ]
    assert found == []


def test_no_module_has_a_retired_name() -> None:
    found = [
        f"{path.relative_to(ROOT)} is {RETIRED_MODULES[path.stem]}"
        for path in sources("jobcache", "app", "benchmarks", "loadtests")
        if path.stem in RETIRED_MODULES
    ]
    assert found == []


def test_a_class_has_a_name_of_its_own() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path in sources("jobcache", "app"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(path.relative_to(ROOT).as_posix())
    twice = {
        name: places
        for name, places in where.items()
        if len(places) > 1 and name not in ONE_IDEA_IN_TWO_PLACES
    }
    assert twice == {}
