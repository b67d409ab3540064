"""ESPnet's streaming recogniser for chunks of any length, such as a microphone gives."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.bin import asr_inference_streaming
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from torch import Tensor

from espnet_bimamba.errors import OptionError


@dataclass(frozen=True)
class Heard:
    """What the features of frames to come need of the samples so far.

    Attributes:
        samples: ``(length,)``; they begin in the middle of a frame's window.
        given: Of their frames, those whose features were given before.
    """

    samples: Tensor
    given: int


class Speech2TextStreaming(asr_inference_streaming.Speech2TextStreaming):
    """ESPnet's ``Speech2TextStreaming``, whose features are those of the whole for all chunks.

    Stock's are, if the first chunk is long enough: of one of up to ``win_length`` samples two
    frames are lost, one of fewer than three hops may raise an error, and where three hops are
    fewer samples than ``win_length`` (ESPnet's default frontend) a short last chunk ends in zeros.

    Args:
        *args: Those of ESPnet's.
        **options: Likewise.

    Raises:
        OptionError: The features of a frame depend on the whole utterance, or its samples cannot
            be told.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        frontend, normalize = self.asr_model.frontend, self.asr_model.normalize
        if not isinstance(frontend, DefaultFrontend) or not getattr(frontend.stft, "center", False):
            raise OptionError(
                "frontend", type(frontend).__name__, "default, centred, for streaming"
            )
        if isinstance(normalize, UtteranceMVN):
            raise OptionError(
                "normalize",
                "utterance_mvn",
                "global_mvn or none for streaming",
                "It reads the whole utterance.",
            )

    def apply_frontend(
        self, speech: Tensor, prev_states: Heard | None = None, is_final: bool = False
    ) -> tuple[Tensor | None, Tensor | None, Heard | None]:
        """Return the features of all frames that the samples so far suffice for.

        Args:
            speech: ``(samples,)``, the next chunk.
            prev_states: What the chunk before returned; None at the start.
            is_final: Whether this is the last chunk.

        Returns:
            ``(1, frames, features)`` and ``(1,)``, None both where there is no new frame; the
            state to give with the next chunk, None after the last one.

        Raises:
            TooShortUttError: The utterance ends within half a window.
        """
        heard = prev_states or Heard(speech[:0], 0)
        samples = torch.cat([heard.samples, speech])
        stft = self.asr_model.frontend.stft
        half, hop = stft.n_fft // 2, stft.hop_length
        # Reflecting the end takes one sample more than half a window.
        complete = max(0, (len(samples) - half - 1) // hop + 1)
        if is_final:
            if not complete:
                raise TooShortUttError(
                    f"has {len(samples)} samples and is too short for a frame "
                    f"(it needs at least {half + 1}), return empty results",
                    len(samples),
                    half + 1,
                )
            return *self._features(samples, heard.given, None), None
        if complete <= heard.given:
            return None, None, Heard(samples, heard.given)
        past = max(0, complete - math.ceil(half / hop))
        # A copy: a view would keep the whole chunk in memory.
        rest = Heard(samples[past * hop :].clone(), complete - past)
        return *self._features(samples, heard.given, complete), rest

    def _features(self, samples: Tensor, begin: int, end: int | None) -> tuple[Tensor, Tensor]:
        batch = samples[None].to(self.device, getattr(torch, self.dtype))
        lengths = torch.tensor([len(samples)], device=self.device)
        features, frames = self.asr_model._extract_feats(batch, lengths)
        if self.asr_model.normalize is not None:
            features, frames = self.asr_model.normalize(features, frames)
        features = features[:, begin:end]
        return features, lengths.new_tensor([features.shape[1]])
