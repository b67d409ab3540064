"""The exceptions this package raises on purpose; each carries the numbers it talks about."""


class BiMambaError(Exception):
    """Base of every exception raised on purpose by espnet-bimamba."""


class OptionError(BiMambaError, ValueError):
    """An option has a value that cannot be honoured.

    Args:
        option: Name as the user wrote it, for example ``mamba_type``.
        value: The value that was given.
        allowed: What is allowed, in words; ends the first sentence of the message.
        hint: What to do instead, if the cause is not obvious from ``allowed``.
    """

    def __init__(self, option: str, value: object, allowed: str, hint: str = "") -> None:
        self.option = option
        self.value = value
        self.allowed = allowed
        message = f"{option}={value!r} is not possible: allowed is {allowed}."
        super().__init__(f"{message} {hint}".rstrip())


class UnusedOptionError(OptionError):
    """An option that the stock encoder reads and ours would silently ignore.

    Args:
        option: Name of the refused ``encoder_conf`` key.
        value: The value that was given.
        encoder: Name of the encoder that refuses it.
        reason: Why it means nothing here and what to write instead.
    """

    def __init__(self, option: str, value: object, encoder: str, reason: str) -> None:
        self.option = option
        self.value = value
        self.encoder = encoder
        BiMambaError.__init__(
            self, f"{encoder} has no option {option} (given: {value!r}): {reason}"
        )


class ShapeError(BiMambaError, ValueError):
    """A tensor does not have the shape, dtype or device its role demands."""


class LengthsError(ShapeError):
    """``lengths`` does not describe the batch it came with."""


class BackendError(BiMambaError, RuntimeError):
    """A backend that was asked for by name cannot serve the call.

    Args:
        backend: Name of the backend.
        reason: What it lacks, or what in the call it does not offer.
        remedy: How to make it serve, or what to ask for instead.
    """

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        self.backend = backend
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"backend {backend!r} cannot serve: {reason}. {remedy}")


class CheckpointError(BiMambaError, RuntimeError):
    """A state dict was saved by another kind of mixer than the one that loads it."""


class IncompatibleEspnetError(BiMambaError, RuntimeError):
    """The installed ESPnet is older than the oldest that the encoders work with.

    Args:
        found: The installed version.
        needed: The oldest version that works.
    """

    def __init__(self, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"espnet {found} is too old: espnet-bimamba needs espnet >= {needed} "
            f"(pip install 'espnet>={needed}')"
        )


class RecipeError(BiMambaError, RuntimeError):
    """The stock ESPnet recipes could not be fetched, unpacked or found.

    Args:
        reason: What failed, with what the failing program said.
        remedy: What the user can do.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}. What to do: {remedy}")


class InputError(BiMambaError, ValueError):
    """Something that was given, mostly a file, cannot be used.

    Args:
        path: The file, or in words what else it is about.
        reason: What is wrong with it, with the line where there is one.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class ConfigError(InputError):
    """A training YAML cannot be read, built or converted."""


class TranscriptError(InputError):
    """Transcripts cannot be read or do not belong together."""


class PackedModelError(BiMambaError, ValueError):
    """A packed model is not what ESPnet's stage 14 makes, or is not safe to unpack.

    Args:
        path: The archive.
        part: Where in it: ``archive`` for the archive itself, else the name of a member.
        reason: What is wrong there.
    """

    def __init__(self, path: object, part: str, reason: str) -> None:
        self.path = path
        self.part = part
        self.reason = reason
        where = path if part == "archive" else f"{path}: {part}"
        super().__init__(f"{where}: {reason}")
