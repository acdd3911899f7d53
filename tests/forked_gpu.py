"""``spaces.GPU`` as it behaves on a ZeroGPU Space (spaces 0.51): a worker process, pickling, and no patience.

Every call runs in a process of its own, forked where the call is made. Arguments and what is yielded cross by pickle.
What the worker yields is taken from it at once, however slowly the caller consumes it. A closed generator is noticed
by the worker after its next item. A worker that dies is a ``gr.Error``.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

import gradio as gr
import torch

PATIENCE_S = 600.0


class ForkedGpu:
    """Use in place of ``spaces.GPU``.

    Attributes:
        decorated: the functions.
        pids: the worker of every call.
        durations: seconds asked for by every call.
        refusal: raised by the next calls.
    """

    def __init__(self) -> None:
        self.decorated: list[Callable] = []
        self.pids: list[int] = []
        self.durations: list[float] = []
        self.refusal: gr.Error | None = None

    def __call__(self, duration: Callable[..., float]) -> Callable[[Callable], Callable]:
        def decorate(task: Callable) -> Callable:
            self.decorated.append(task)

            @functools.wraps(task)
            def handler(*args) -> Iterator:
                self.durations.append(duration(*args))
                if self.refusal is not None:
                    raise self.refusal
                yield from self._run(task, args)

            return handler

        return decorate

    def kill(self) -> None:
        """The newest worker dies."""
        os.kill(self.pids[-1], signal.SIGKILL)

    def _run(self, task: Callable, args: tuple) -> Iterator:
        context = multiprocessing.get_context("fork")
        given, results, stop = context.SimpleQueue(), context.SimpleQueue(), context.Event()
        process = context.Process(target=_work, args=(task, given, results, stop), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that is what ZeroGPU does, too
            process.start()
        self.pids.append(process.pid)
        given.put(args)
        taken: queue.Queue = queue.Queue()
        threading.Thread(target=_fill, args=(results, taken), daemon=True).start()
        threading.Thread(target=_watch, args=(process, results), daemon=True).start()
        while True:
            kind, value = taken.get(timeout=PATIENCE_S)
            if kind == "item":
                try:
                    yield value
                except GeneratorExit:
                    stop.set()
                    raise
            elif kind == "end":
                return
            else:
                raise gr.Error("GPU task aborted", title="ZeroGPU worker error", print_exception=False)


def _work(task: Callable, given, results, stop) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    items = task(*given.get())
    for item in items:
        if stop.is_set():
            items.close()
            break
        results.put(("item", item))
    results.put(("end", None))


def _fill(results, taken: queue.Queue) -> None:
    """Takes what there is, without limit."""
    while True:
        result = results.get()
        taken.put(result)
        if result[0] != "item":
            return


def _watch(process, results) -> None:
    process.join()
    if process.exitcode:
        results.put(("aborted", None))
