"""Several engines behind one page: replicas in processes of their own, on this machine or in a Ray cluster.

Each replica has a keeper, a thread that starts it, waits until it dies, and starts another one. Sessions find out by
themselves that their replica is lost, and ask here for another. Ray is imported only here, when replicas are wanted.

Set ``RAY_ADDRESS`` to use a cluster that runs; otherwise one is made on this machine, which nobody else may use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livetalk.config import Preset
from livetalk.media.pictures import PortraitSource, load_portrait
from livetalk.media.sound import SpeechSource, speech_blocks
from livetalk.resources import configured_threads, page_threads
from livetalk.stream.avatar import Avatar
from livetalk.stream.capacity import Carried
from livetalk.stream.talkers.registry import talker_chain
from livetalk.types import PLAYBACK_RATE, LiveTalkError, Pictures
from livetalk.ui.away import AwaySession, Place, ReplicaLostError
from livetalk.ui.line import visitor_limit
from livetalk.ui.opening import Opening
from livetalk.ui.replica import Replica
from livetalk.ui.visit import TalkerChain

START_S = 600.0
"""A replica is there within this time, or whoever waits for it is told why not."""

AGAIN_S = 5.0
"""After a replica that could not be started, until the next attempt."""

STORE_BYTES = 256 * 2**20
"""Shared memory for pieces on their way."""

WORD_THREADS = 8
TOKEN_FILE = Path.home() / ".ray" / "auth_token"
TOKEN_VARIABLES = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
NO_CLUSTER = " Is one there (RAY_ADDRESS), and does this machine know its token (RAY_AUTH_TOKEN, or ~/.ray/auth_token)?"
_GROUPS = {"live_on": "life", "hear": "hearing", "step": "pictures"}
"""Methods that have threads of their own, so that none waits for another kind."""

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """Room for one replica.

    Attributes:
        engine: its handle.
        carried: how many sessions it carries; None = it is being started.
        sessions: those that are on it.
        problem: why it could not be started.
    """

    engine: Any = None
    carried: Carried | None = None
    sessions: list[AwaySession] = field(default_factory=list)
    problem: LiveTalkError | None = None

    @property
    def places(self) -> int:
        """Sessions it carries; 0 while there is no replica."""
        if self.carried is None:
            return 0
        return self.carried.places([session.real_time_factor for session in self.sessions])

    @property
    def attraction(self) -> tuple[bool, int, int]:
        """Grows with what makes it the better place: first that there is room, then few sessions, then much room."""
        room = self.places - len(self.sessions)
        return room > 0, -len(self.sessions), room


class Replicas:
    """Replicas of one model, and the sessions on them; a context, whose end stops them all.

    Args:
        preset: see ``livetalk.stream.avatar.load``.
        device: see ``load``; with CUDA the GPUs of the machine are shared out evenly.
        count: how many.
        talkers: makes the talkers of a conversation, in the replica.

    Raises:
        LiveTalkError: Ray is missing or does not start, or the model cannot be loaded.
    """

    def __init__(self, preset: str | Path, device: str, count: int, talkers: TalkerChain = talker_chain) -> None:
        if count < 1:
            raise LiveTalkError(f"The number of replicas is {count}. Expected 1 or more.")
        self._ray = _ray()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._open = contextlib.ExitStack()
        self._preset: Preset | None = None
        self._open.enter_context(_cluster(self._ray, count))
        threads = configured_threads() or max(1, page_threads() // count)
        self._make = self._maker(count, device, (preset, device, threads, talkers))
        self._slots = [_Slot() for _ in range(count)]
        self._keepers = [
            threading.Thread(target=self._keep, args=(slot,), name="livetalk-keeper", daemon=True)
            for slot in self._slots
        ]
        for keeper in self._keepers:
            keeper.start()
        try:
            self._wait(lambda: all(slot.carried or slot.problem for slot in self._slots))
            for slot in self._slots:
                if slot.problem is not None:
                    raise slot.problem
        except BaseException:
            self.close()
            raise

    @property
    def preset(self) -> Preset:
        """Of the model that the replicas have."""
        assert self._preset is not None
        return self._preset

    @property
    def places(self) -> int:
        """How many sessions may be on now; falls while a replica is being replaced."""
        with self._changed:
            return sum(slot.places for slot in self._slots)

    def open(self, opening: Opening) -> AwaySession:
        """A session begins; see ``AwaySession``."""
        return AwaySession(self, opening)

    def place(self, session: AwaySession | None = None) -> Place:
        """A living replica with room and few sessions, for a session or (None) for a moment; waits if none lives.

        Where no replica has room a session is squeezed in: late pictures are better than none.

        Raises:
            LiveTalkError: there was none for too long.
        """
        with self._changed:
            self._forget(session)
            self._wait(lambda: any(slot.carried for slot in self._slots))
            slot = max((slot for slot in self._slots if slot.carried), key=lambda one: one.attraction)
            if session is not None:
                slot.sessions.append(session)
            return _Place(self._ray, slot.engine, self._lost)

    def leave(self, session: AwaySession) -> None:
        """The session has ended."""
        with self._changed:
            self._forget(session)

    def close(self) -> None:
        """Stop all replicas, and the cluster if it was made here."""
        self._closed.set()
        with self._changed:
            engines = [slot.engine for slot in self._slots if slot.engine]
            self._changed.notify_all()
        for engine in engines:
            self._ray.kill(engine)
        for keeper in self._keepers:
            keeper.join(AGAIN_S)
        self._open.close()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self, session: AwaySession | None) -> None:
        for slot in self._slots:
            if session in slot.sessions:
                slot.sessions.remove(session)

    def _wait(self, true: Callable[[], object]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed.is_set() or true(), START_S) or self._closed.is_set():
                problem = next((slot.problem for slot in self._slots if slot.problem), None)
                raise LiveTalkError(f"No replica is there to draw. {problem or 'Try again in a few minutes.'}")

    def _maker(self, count: int, device: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        """What starts a replica."""
        groups = {"life": 1, "hearing": visitor_limit(), "pictures": visitor_limit()}
        engine = self._ray.remote(concurrency_groups=groups)(Replica)
        gpus = 0.0 if device == "cpu" else self._ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / count)
        options = {"num_cpus": 1, "num_gpus": share, "max_concurrency": WORD_THREADS, "scheduling_strategy": "SPREAD"}
        return lambda: engine.options(**options).remote(*arguments)

    def _keep(self, slot: _Slot) -> None:
        """The keeper of a slot: a replica is started, lives, and is replaced when it is lost."""
        while not self._closed.is_set():
            slot.engine = engine = self._make()
            place = _Place(self._ray, engine, self._lost)
            try:
                preset, alone, gain = place.call("load", limit_s=START_S)
            except LiveTalkError as error:
                self._note_problem(slot, error)
                continue
            except Exception:
                if not self._closed.is_set():
                    log.exception("a replica could not be started")
                self._note_problem(slot, LiveTalkError("A replica died before its model was loaded; the log says why."))
                continue
            with self._changed:
                self._preset, slot.carried, slot.problem = preset, Carried(alone, gain), None
                self._changed.notify_all()
            with contextlib.suppress(ReplicaLostError):
                place.call("live_on")
            if not self._closed.is_set():
                log.warning("a replica was lost, another one is started")

    def _note_problem(self, slot: _Slot, problem: LiveTalkError) -> None:
        """Why there is no replica; before another attempt there is time to see to it."""
        with self._changed:
            slot.problem = problem
            self._changed.notify_all()
        if not self._closed.is_set():
            self._ray.kill(slot.engine)
            self._closed.wait(AGAIN_S)

    def _lost(self, engine: Any) -> None:
        """Nobody is sent there any more."""
        with self._changed:
            for slot in self._slots:
                if slot.engine is engine:
                    slot.carried = None


class _Place:
    """A replica, reached by Ray; see ``livetalk.ui.away.Place``."""

    def __init__(self, ray: Any, engine: Any, lost: Callable[[Any], None]) -> None:
        self._ray, self._engine, self._lost = ray, engine, lost

    def call(self, verb: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """See ``Place.call``."""
        errors = self._ray.exceptions
        if not self._ray.is_initialized():  # a call would start another cluster
            raise ReplicaLostError
        try:
            return self._ray.get(self._ask(verb, *arguments), timeout=limit_s)
        except errors.GetTimeoutError as error:
            raise TimeoutError from error
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            self._lost(self._engine)
            raise ReplicaLostError from error

    def post(self, verb: str, *arguments: Any) -> None:
        """See ``Place.post``."""
        if self._ray.is_initialized():
            self._ask(verb, *arguments)

    def _ask(self, verb: str, *arguments: Any) -> Any:
        method = getattr(self._engine, verb)
        if verb in _GROUPS:
            method = method.options(concurrency_group=_GROUPS[verb])
        return method.remote(*arguments)


class ReplicaAvatar(Avatar):
    """The avatar of a front: it has no models, its clips are drawn by replicas; live sessions come from ``Replicas``.

    Args:
        replicas: who draws.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    @property
    def preset(self) -> Preset:
        """See ``Avatar.preset``."""
        return self._replicas.preset

    def clip(
        self,
        portrait: PortraitSource,
        speech: SpeechSource,
        prompt: str | None = None,
        seed: int = 0,
        limit_s: float | None = None,
    ) -> Iterator[Pictures]:
        """See ``Avatar.clip``."""
        name, preset, place = secrets.token_hex(8), self.preset, self._replicas.place()
        pixels = load_portrait(portrait, preset.height, preset.width).pixels()
        try:
            place.call("open_clip", name, pixels, prompt, seed)
            try:
                for block in speech_blocks(speech, PLAYBACK_RATE, limit_s):
                    yield from place.call("say", name, block)
                yield from place.call("say", name, None)
            finally:
                place.post("close_clip", name)
        except ReplicaLostError as error:
            raise LiveTalkError("The computer that drew this clip was lost. Try again.") from error


def _ray() -> Any:
    """Ray, which is an optional package; it tells nobody that it is used.

    A cluster made here is reached from this machine only, by whoever knows a fresh token.

    Raises:
        LiveTalkError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        if os.environ.keys() & TOKEN_VARIABLES or TOKEN_FILE.is_file():  # "ray start" asks for a token that it finds
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif "ray" not in sys.modules:  # it reads these when it is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # no cluster: it listens on the loopback only
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise LiveTalkError("Replicas need Ray, which is missing: pip install -r requirements-extra.txt") from error
    return ray


@contextlib.contextmanager
def _cluster(ray: Any, count: int) -> Iterator[None]:
    """Connected to the cluster that ``RAY_ADDRESS`` names, or to one made here for the time.

    Raises:
        LiveTalkError: there is none, or it does not start.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if not os.environ.get("RAY_ADDRESS"):
            folder = tempfile.TemporaryDirectory(prefix="livetalk-ray-", ignore_cleanup_errors=True)
            options |= {"num_cpus": count, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            options |= {"_temp_dir": stack.enter_context(folder)}
        stack.callback(ray.shutdown)
        try:
            ray.init(**options)
        except Exception as error:
            hint = NO_CLUSTER if os.environ.get("RAY_ADDRESS") else ""
            raise LiveTalkError(f"Ray does not start: {str(error)[:300]}.{hint}") from error
        yield
