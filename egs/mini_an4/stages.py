"""Runs a recipe's stages, shows where they are, and remembers which are done."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from espnet_bimamba.files import write_whole

START = time.monotonic()


class RecipeFailedError(RuntimeError):
    """A stage ended with an error; the message holds the end of its log."""


def say(text: str) -> None:
    """Prints one line, stamped with the time since the program started."""
    minutes, seconds = divmod(int(time.monotonic() - START), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {text}", flush=True)


class DoneStages:
    """Which stages a working copy has finished, and with which configuration.

    Args:
        file: Where that is kept between runs.
        key: Hash of everything the later stages depend on.
        lasting: Stages that do not depend on it, such as data preparation.
    """

    def __init__(self, file: Path, key: str, lasting: Sequence[str]) -> None:
        self.file = file
        self.key = key
        known = json.loads(file.read_text()) if file.is_file() else {"key": key, "done": []}
        self.outdated = known["key"] != key
        self.done = [s for s in known["done"] if not self.outdated or s in lasting]

    def add(self, stage: str) -> None:
        """Remembers a finished stage, also across an interruption right now."""
        if stage in self.done:
            return
        self.done.append(stage)
        write_whole(self.file, json.dumps({"key": self.key, "done": self.done}))

    def missing(self, stages: Sequence[str]) -> list[str]:
        """Those of ``stages`` from the first unfinished one on."""
        for index, stage in enumerate(stages):
            if stage not in self.done:
                return list(stages[index:])
        return []


def run(
    command: Sequence[str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs ``command`` with its whole output in ``log``, and each line given to ``on_line``.

    Raises:
        RecipeFailedError: It ended with an error.
        KeyboardInterrupt: The user interrupted; every process it started is ended first.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment() | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Its own process group, so that an interrupt can end the jobs a recipe starts too.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with log.open("a") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                on_line(line)
        code = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code != 0:
        raise RecipeFailedError(f"exit code {code}; the end of {log}:\n{_tail(log)}")


class StageRunner:
    """Calls a recipe's ``run.sh`` for a row of stages, shows them, and notes each that ends.

    Args:
        command: The script and the options that all stages get.
        cwd: Where it is called.
        log: Where its whole output goes.
        done: The stages that are done.
        script: ESPnet's script that logs the stages, for example ``asr.sh``.
        epochs: What shows the epochs of a training meanwhile, as :func:`epochs_of` does.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        log: Path,
        done: DoneStages,
        script: str,
        epochs: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.command = list(command)
        self.cwd = cwd
        self.log = log
        self.done = done
        self.epochs = epochs
        self.started: list[str] = []
        logged = rf"\({re.escape(script)}:\d+:main\) "
        self.stage_starts = re.compile(logged + r"(?:Skip s|S)tage (\d+): (.*)")
        place = r"/((?!scoring/)[^/]+)/(?:scoring/)?logdir/"
        self.job_starts = re.compile(logged + r"(\w+) started.*" + place)

    def stages(self, stages: Sequence[str]) -> None:
        """Runs those of ``stages`` that are not done, from the first of them on.

        Raises:
            RecipeFailedError: A stage ended with an error.
        """
        missing = self.done.missing(stages)
        if not missing:
            return
        self.started.clear()
        command = [*self.command, "--stage", missing[0], "--stop_stage", missing[-1]]
        with self.epochs():
            run(command, cwd=self.cwd, log=self.log, on_line=self._line)
        for stage in missing:
            self.done.add(stage)

    def _line(self, line: str) -> None:
        if match := self.stage_starts.search(line):
            for stage in self.started:
                self.done.add(stage)
            self.started.append(match[1])
            say(f"stage {match[1]}: {match[2]}")
        elif match := self.job_starts.search(line):
            say(f"    {match[1].lower()} {match[2]}")


def environment() -> dict[str, str]:
    """The environment for a recipe: whatever it calls python3 is this Python."""
    return os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
    }


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(f"    {line}" for line in log.read_text().splitlines()[-lines:])


@contextlib.contextmanager
def epochs_of(folder: Path, pattern: str, line: re.Pattern[str], text: str) -> Iterator[None]:
    """While the body runs, says each epoch that the training log reports.

    Args:
        folder: Where to look for the log.
        pattern: Glob of the log below it; it may appear later.
        line: What an epoch's line looks like.
        text: Format of what is said, with the groups of ``line``.
    """
    stop = threading.Event()
    already = _matches(folder, pattern, line)

    def follow() -> None:
        said = list(already)
        while not stop.wait(0.2):
            for match in _matches(folder, pattern, line):
                if match not in said:
                    said.append(match)
                    say("    " + text.format(*match))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _matches(folder: Path, pattern: str, line: re.Pattern[str]) -> list[tuple[str, ...]]:
    return [
        match.groups()
        for file in sorted(folder.glob(pattern))
        for match in line.finditer(file.read_text(errors="replace"))
    ]
