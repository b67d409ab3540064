"""Checks a packed model as those who will load it need it, and says what was checked."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet_bimamba.cli.zoo import archive, probe
from espnet_bimamba.cli.zoo.archive import PackedModel
from espnet_bimamba.cli.zoo.card import lacks
from espnet_bimamba.errors import OptionError, PackedModelError

#: Every check, in the order of the list.
NAMES = (
    "archive",
    "meta.yaml",
    "configuration",
    "card",
    "loading",
    "weights",
    "transcribing",
    "without us",
)
SECONDS = 1
#: Seconds that either process may take; a large model on a slow machine needs a few minutes.
TIMEOUT = 600
DISABLE = "ESPNET_BIMAMBA_DISABLE"
#: What would make ESPnet or torch run code that comes with the weights.
UNSAFE_VARIABLES = ("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Attributes:
        name: One of :data:`NAMES`.
        passed: None where it could not be checked.
        detail: What was seen.
    """

    name: str
    passed: bool | None
    detail: str


def checks(path: Path, wav: Path | None = None, timeout: int = TIMEOUT) -> Iterator[Check]:
    """Yield what is found, as it is found; what an earlier failure rules out comes as not checked.

    Args:
        path: The packed model.
        wav: What to transcribe; None takes a second of noise.
        timeout: Seconds that either of the two processes may take.

    Raises:
        PackedModelError: There is no such file.
        OptionError: ``wav`` is no sound file, or does not fit the model.
    """
    archive.existing(path)
    if wav is not None:
        _sound(wav)  # before the first check, of which there may be minutes
    found = _checks(path, wav, timeout)
    check = next(found, None)
    for name in NAMES:
        if check is None or check.name != name:
            yield Check(name, None, "not checked, because of the above")
        else:
            yield check
            check = next(found, None)


def _checks(path: Path, wav: Path | None, timeout: int) -> Iterator[Check]:
    # Until the archive is known to be harmless, nothing unpacks it.
    step = "archive"
    try:
        members = archive.safe_members(path)
        yield Check(step, True, f"{len(members)} files, all inside and intact, none of them a link")
        step = "meta.yaml"
        meta = archive.read_meta(path, members)
        packed_with = ", ".join(
            f"{name} {archive.noted_version(meta, name) or '?'}" for name in ("espnet", "torch")
        )
        yield Check(step, True, f"all that it names is packed; made with {packed_with}")
        step = "configuration"
        config = archive.read_config(path, members, meta)
        files = ", ".join(archive.files_of(config)) or "no further files"
        yield Check(step, True, f"encoder: {config['encoder']}; packed: {files}")
        model = PackedModel(path, members, meta, config)
        step = "card"
        lacking = lacks(model)
    except PackedModelError as error:
        yield Check(step, False, str(error).removeprefix(f"{path}: "))
        return
    yield Check(
        step,
        lacking is None,
        "README.md says that espnet-bimamba is needed, and from where pip installs it"
        if lacking is None
        else f"{lacking}; `espnet-bimamba zoo card {shlex.quote(str(path))} --source URL` does",
    )
    with tempfile.TemporaryDirectory() as folder:
        speech = wav or _noise(model.sampling_rate, Path(folder))
        _check_speech(speech, model)
        yield from _judge(_in_fresh_process(path, speech, timeout, disabled=False), model)
        yield _judge_without(_in_fresh_process(path, speech, timeout, disabled=True), model)


def _judge(report: probe.Report, model: PackedModel) -> Iterator[Check]:
    """Yield the checks of a process that has this package installed."""
    if report.error and report.step != "transcribe":
        hint = ""
        if f"--encoder {model.encoder}" in report.error:
            hint = "; ESPnet does not know our encoders: see `espnet-bimamba doctor`"
        yield Check("loading", False, f"{report.error}{hint}")
        return
    ours = report.encoder.startswith("espnet_bimamba.")
    yield Check(
        "loading",
        ours,
        f"Speech2Text.from_pretrained, in a fresh process with espnet {report.espnet}, "
        f"built {report.encoder}" + ("" if ours else ", which is none of ours"),
    )
    yield _judge_weights(report)
    if report.error:
        yield Check("transcribing", False, report.error)
    else:
        yield Check("transcribing", True, f"heard {report.text!r}")


def _judge_weights(report: probe.Report) -> Check:
    if not report.weights_only:
        return Check("weights", False, "ESPnet asked torch.load for more than weights")
    for tensors, fault in (
        (report.missing, "lack {}, which ESPnet leaves as initialised"),
        (report.unexpected, "hold {}, for which the model has no place"),
    ):
        if tensors:
            shown = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
            number = f"{len(tensors)} of {report.parameters} tensors"
            return Check("weights", False, f"they {fault.format(f'{number} ({shown})')}")
    return Check(
        "weights", True, f"read with weights_only=True; all {report.parameters} tensors match"
    )


def _judge_without(report: probe.Report, model: PackedModel) -> Check:
    """Judge a process in which ESPnet does not learn our names."""
    name = "without us"
    if report.error is None or report.step == "transcribe":
        return Check(
            name,
            False,
            f"ESPnet {report.espnet} loads it without this package, with {report.encoder}",
        )
    if f"--encoder {model.encoder}" not in report.error:
        return Check(name, False, f"fails in another way: {report.error}")
    return Check(
        name,
        True,
        f"ESPnet stops at --encoder {model.encoder}; which package has it is for the card to say",
    )


def _in_fresh_process(path: Path, speech: Path, timeout: int, *, disabled: bool) -> probe.Report:
    """Probe the model in an interpreter that imports nothing of this package by itself."""
    with tempfile.TemporaryDirectory() as folder:
        home, out = Path(folder) / "home", Path(folder) / "report.json"
        home.mkdir()
        arguments = [str(file.absolute()) for file in (path, speech, out)]
        with subprocess.Popen(
            [sys.executable, "-I", probe.__file__, *arguments],
            # A model that finds its files in the current folder only would not find them here.
            cwd=home,
            env=_environment(home, disabled=disabled),
            # ESPnet asks at a terminal whether it may run code.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, with all that it starts
        ) as process:
            try:
                _, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as late:
                error = f"not done after {late.timeout} s, which --timeout allows"
                return probe.Report(error=error)
            finally:
                _kill_group(process)
        if out.is_file():
            return probe.Report(**json.loads(out.read_text()))
    last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
    return probe.Report(error=f"the process ended with exit code {process.returncode}: {last}")


def _kill_group(process: "subprocess.Popen[str]") -> None:
    """End a process that has not ended, and those that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment(home: Path, *, disabled: bool) -> dict[str, str]:
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in (DISABLE, *UNSAFE_VARIABLES)
    }
    # ESPnet unpacks into the home, which goes with the folder; compiled kernels stay useful.
    variables["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    variables["HOME"] = str(home)
    if disabled:
        variables[DISABLE] = "1"
    return variables


def _noise(rate: int, folder: Path) -> Path:
    import numpy as np
    import soundfile

    noise = 0.01 * np.random.default_rng(0).standard_normal(SECONDS * rate)
    soundfile.write(folder / "noise.wav", noise, rate)
    return folder / "noise.wav"


def _sound(wav: Path) -> tuple[int, int]:
    """Return the channels and the samples a second of a sound file."""
    import soundfile

    try:
        found = soundfile.info(wav)
    except (RuntimeError, OSError) as error:
        raise OptionError("--wav", str(wav), f"a sound file ({error})") from error
    return found.channels, found.samplerate


def _check_speech(wav: Path, model: PackedModel) -> None:
    channels, rate = _sound(wav)
    if (channels, rate) != (1, model.sampling_rate):
        raise OptionError(
            "--wav",
            f"{wav} ({channels} channels, {rate} Hz)",
            f"one channel at {model.sampling_rate} Hz, as the model was trained",
        )
