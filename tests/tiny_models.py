"""For each registry that holds our encoders: the smallest model and batch of its task.

To add a registry: one row in ``espnet_bimamba/registry.py``, one row in :data:`TINY`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import torch

FEATURES = 8
FRAMES = 24
TOKENS = ["<blank>", "<unk>", "<na>", "a", "b", "<sop>", "<sos>", "<eos>"]

ENCODER_CONFS: dict[str, dict[str, Any]] = {
    "conbimamba": {"linear_units": 8, "cnn_module_kernel": 3},
    "transbimamba": {"linear_units": 8},
    "bimamba": {},
    "e_branchbimamba": {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3},
}
DECODER_CONF = {"attention_heads": 1, "linear_units": 8, "num_blocks": 1}

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """How to build the smallest model of a task.

    Attributes:
        task: Name of the task class in the host module.
        encoder: Prefix of the option that names the encoder.
        batch: Makes the input of the model's ``forward``.
        options: Task options that differ from their defaults.
        encoder_conf: What the encoder needs to fit into the task.
        prepare: Makes options that need files, from a folder to write them to.
        complete: Gives the model what its task leaves open.
    """

    task: str
    encoder: str
    batch: Callable[[], Batch]
    options: dict[str, Any]
    encoder_conf: dict[str, Any] = field(default_factory=lambda: {"input_layer": "linear"})
    prepare: Callable[[Path], dict[str, Any]] = lambda _: {}
    complete: Callable[[torch.nn.Module], None] = lambda _: None

    def build(self, module: str, name: str, folder: Path) -> torch.nn.Module:
        """Build the model through the task's own parser and ``build_model``."""
        task = getattr(importlib.import_module(module), self.task)
        args = task.get_parser().parse_args([f"--{self.encoder}", name])
        common = {"output_size": FEATURES, "num_blocks": 1, "d_state": 2}
        conf = {**common, **ENCODER_CONFS[name], **self.encoder_conf}
        options = {**self.options, f"{self.encoder}_conf": conf, **self.prepare(folder)}
        for option, value in options.items():
            if not hasattr(args, option):
                raise AttributeError(f"{self.task} has no option {option}")
            setattr(args, option, value)
        model = task.build_model(args)
        self.complete(model)
        return model


def _sequence(name: str, values: torch.Tensor) -> Batch:
    length = values.shape[1]
    return {name: values, f"{name}_lengths": torch.tensor([length, length - 1])}


def _speech(name: str = "speech") -> Batch:
    return _sequence(name, torch.randn(2, FRAMES, FEATURES))


def _text(name: str = "text") -> Batch:
    return _sequence(name, torch.randint(3, 5, (2, 4)))


def _asr_batch() -> Batch:
    return {**_speech(), **_text()}


def _st_batch() -> Batch:
    return {**_asr_batch(), **_text("src_text")}


def _mt_batch() -> Batch:
    return {**_sequence("src_text", torch.randint(3, 5, (2, FRAMES))), **_text()}


def _cls_batch() -> Batch:
    return {**_speech(), "label": torch.tensor([[1], [2]]), "label_lengths": torch.tensor([1, 1])}


def _asvspoof_batch() -> Batch:
    return {**_speech(), "label": torch.tensor([[0], [1]])}


def _diar_batch() -> Batch:
    return {**_speech(), **_sequence("spk_labels", torch.ones(2, FRAMES, 2))}


def _s2t_batch() -> Batch:
    return {**_asr_batch(), **_text("text_prev"), **_text("text_ctc")}


def _s2t_ctc_batch() -> Batch:
    return {
        **_s2t_batch(),
        **_sequence("speech", torch.randn(2, 64, FEATURES)),
        "prefix": torch.full((2, 2), 4),
        "prefix_lengths": torch.tensor([2, 2]),
    }


def _s2st_batch() -> Batch:
    texts = {**_text("src_text"), **_text("tgt_text"), **_text("tgt_speech")}
    return {**_speech("src_speech"), **texts}


def _ssl_batch() -> Batch:
    return {**_speech(), **_sequence("text", torch.randint(0, 4, (2, FRAMES)))}


def _enh_batch() -> Batch:
    return {**_sequence("speech", torch.randn(2, 300)), "speech_ref1": torch.randn(2, 300)}


def _enh_asr_batch() -> Batch:
    return {**_enh_batch(), **_text("text_spk1")}


def _enh_st_batch() -> Batch:
    return {**_enh_batch(), **_text()}


def _enh_diar_batch() -> Batch:
    # In this task `text` is who speaks when, sample by sample.
    return {**_enh_batch(), "speech_ref2": torch.randn(2, 300), "text": torch.ones(2, 300, 2)}


def _gan_tok_batch() -> Batch:
    speech = _sequence("speech", torch.randn(2, 64))
    return {**speech, **_text(), "spembs": torch.randn(2, 2)}


def _kmeans(folder: Path) -> dict[str, Any]:
    path = folder / "kmeans.mdl"
    joblib.dump(SimpleNamespace(cluster_centers_=np.zeros((4, 2), dtype=np.float32)), path)
    return {"quantizer_conf": {"centroid_path": str(path)}}


class _MeanDecoder(torch.nn.Module):
    def forward(self, encoder_out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return encoder_out[..., 0].mean(dim=1)


def _write_the_decoder(model: torch.nn.Module) -> None:
    # ESPnet's asvspoof is an exercise: the decoder's forward is left to the student.
    model.decoder = _MeanDecoder()


def _return_three_values(model: torch.nn.Module) -> None:
    # The multi-decoder branch of ESPnet's st unpacks (out, lengths, hidden); its decoders return
    # ((out, hidden), lengths).
    decoder = model.extra_asr_decoder
    forward = decoder.forward

    def unpacked(*args: Any, return_hs: bool) -> tuple[torch.Tensor, ...]:
        (out, hidden), lengths = forward(*args, return_hs=return_hs)
        return out, lengths, hidden

    decoder.forward = unpacked


SPEECH = {"input_size": FEATURES, "normalize": None}
QUIET = {"report_cer": False, "report_wer": False}
ASR = {
    **SPEECH,
    "token_list": TOKENS,
    "decoder": "transformer",
    "decoder_conf": DECODER_CONF,
    "model_conf": {"ctc_weight": 0.5, **QUIET},
}
MT = {
    "input_size": FEATURES,
    "token_list": TOKENS,
    "src_token_list": TOKENS,
    "decoder": "transformer",
    "decoder_conf": DECODER_CONF,
}
ST = {
    **SPEECH,
    "token_list": TOKENS,
    "src_token_list": TOKENS,
    "decoder": "transformer",
    "decoder_conf": DECODER_CONF,
    "extra_asr_decoder": "transformer",
    "extra_asr_decoder_conf": DECODER_CONF,
    "extra_mt_decoder": None,
    "model_conf": {"asr_weight": 0.5, "mtlalpha": 0.5, "report_bleu": False, **QUIET},
}
# The other encoder of a task that has more than one.
STOCK = {
    "encoder": "transformer",
    "encoder_conf": {**DECODER_CONF, "output_size": FEATURES, "input_layer": "linear"},
}
S2ST = {
    "s2st_type": "unity",
    "input_size": FEATURES,
    "src_normalize": None,
    "tgt_feats_extract": None,
    "tgt_normalize": None,
    "src_token_list": TOKENS,
    "tgt_token_list": TOKENS,
    "unit_token_list": TOKENS,
    "asr_decoder": None,
    "st_decoder": "transformer",
    "st_decoder_conf": DECODER_CONF,
    "synthesizer": "discrete_unit",
    "synthesizer_conf": DECODER_CONF,
    "losses": [
        {"name": name, "type": "attention", "conf": {}} for name in ("tgt_attn", "synthesis")
    ],
    "model_conf": {"report_bleu": False, **QUIET},
}
ENH = {
    "token_list": TOKENS,
    "src_token_list": TOKENS,
    "enh_criterions": [
        {"name": "mse_td", "conf": {}, "wrapper": "fixed_order", "wrapper_conf": {"weight": 1.0}}
    ],
    "frontend_conf": {"fs": 300, "n_fft": 32, "win_length": 32, "hop_length": 8, "n_mels": 8},
    "normalize": None,
    "enh_encoder_conf": {"n_fft": 32, "hop_length": 16},
    "enh_decoder_conf": {"n_fft": 32, "hop_length": 16},
    "enh_separator_conf": {"num_spk": 1, "layer": 1, "unit": 4},
}

VOCODER_CONF = {
    "token_embed_dim": 2,
    "speaker_embed_dim": 2,
    "generator_params": {
        "channels": 4,
        "upsample_scales": [2],
        "upsample_kernel_sizes": [4],
        "resblock_kernel_sizes": [3],
        "resblock_dilations": [[1]],
    },
    "discriminator_params": {
        "scales": 1,
        "periods": [2],
        "scale_discriminator_params": {"channels": 4, "max_groups": 1},
        "period_discriminator_params": {"channels": 4},
    },
}

_HOSTS: dict[str, dict[str, Tiny]] = {
    "espnet2.tasks.asr": {"encoder_choices": Tiny("ASRTask", "encoder", _asr_batch, ASR)},
    "espnet2.tasks.asvspoof": {
        "encoder_choices": Tiny(
            "ASVSpoofTask",
            "encoder",
            _asvspoof_batch,
            {**SPEECH, "losses": [{"name": "binary_loss", "conf": {}}]},
            complete=_write_the_decoder,
        )
    },
    "espnet2.tasks.cls": {
        "encoder_choices": Tiny("CLSTask", "encoder", _cls_batch, {**SPEECH, "token_list": TOKENS})
    },
    "espnet2.tasks.diar": {
        "encoder_choices": Tiny(
            "DiarizationTask",
            "encoder",
            _diar_batch,
            {
                **SPEECH,
                "frontend": None,
                "num_spk": 2,
                "label_aggregator_conf": {"win_length": 1, "hop_length": 1, "center": False},
            },
        )
    },
    "espnet2.tasks.enh_s2t": {
        "asr_encoder_choices": Tiny(
            "EnhS2TTask",
            "asr_encoder",
            _enh_asr_batch,
            {
                **ENH,
                "subtask_series": ["enh", "asr"],
                "asr_decoder": "transformer",
                "asr_decoder_conf": DECODER_CONF,
                "asr_model_conf": QUIET,
            },
        ),
        "st_encoder_choices": Tiny(
            "EnhS2TTask",
            "st_encoder",
            _enh_st_batch,
            {
                **ENH,
                "subtask_series": ["enh", "st"],
                "st_decoder": "transformer",
                "st_decoder_conf": DECODER_CONF,
                "st_extra_asr_decoder": None,
                "st_extra_mt_decoder": None,
                "st_model_conf": {"report_bleu": False, **QUIET},
            },
        ),
        "diar_encoder_choices": Tiny(
            "EnhS2TTask",
            "diar_encoder",
            _enh_diar_batch,
            {
                **ENH,
                "subtask_series": ["enh", "diar"],
                "diar_num_spk": 2,
                "diar_input_size": 4,
                "diar_frontend": None,
                "label_aggregator_conf": {"win_length": 32, "hop_length": 16},
                "enh_separator": "tcn_nomask",
                "enh_separator_conf": {"layer": 1, "stack": 1, "bottleneck_dim": 4},
                "enh_mask_module": "multi_mask",
                "enh_mask_module_conf": {"bottleneck_dim": 4, "max_num_spk": 2},
            },
        ),
    },
    "espnet2.tasks.gan_tok": {
        "asr_encoder_choices": Tiny(
            "GANSpeechTokenizerTask",
            "asr_encoder",
            _gan_tok_batch,
            {
                "token_list": TOKENS,
                "frontend_conf": {
                    "n_fft": 8,
                    "win_length": 8,
                    "hop_length": 2,
                    "n_mels": 2,
                    "frontend_conf": None,
                },
                "asr_embedding_conf": {"embed_dim": 4, "use_positional_encoding": False},
                "asr_decoder": "transformer",
                "asr_decoder_conf": DECODER_CONF,
                "asr_model_conf": QUIET,
                "reconstruction_loss_conf": VOCODER_CONF,
                "model_conf": {"reconstruction_weight": 0.0},
                "skip_discriminator_prob": 1.0,
            },
            prepare=_kmeans,
        )
    },
    "espnet2.tasks.mt": {
        "encoder_choices": Tiny(
            "MTTask", "encoder", _mt_batch, MT, encoder_conf={"input_layer": "embed"}
        )
    },
    "espnet2.tasks.s2st": {
        "encoder_choices": Tiny(
            "S2STTask",
            "encoder",
            _s2st_batch,
            {
                **S2ST,
                "unit_encoder": "transformer",
                "unit_encoder_conf": {**STOCK["encoder_conf"], "input_layer": None},
            },
        ),
        "unit_encoder_choices": Tiny("S2STTask", "unit_encoder", _s2st_batch, {**S2ST, **STOCK}),
    },
    "espnet2.tasks.s2t": {"encoder_choices": Tiny("S2TTask", "encoder", _s2t_batch, ASR)},
    "espnet2.tasks.s2t_ctc": {
        "promptencoder_choices": Tiny(
            "S2TTask",
            "promptencoder",
            _s2t_ctc_batch,
            {
                **SPEECH,
                "token_list": TOKENS,
                "encoder": "e_branchformer_ctc",
                "encoder_conf": {
                    **DECODER_CONF,
                    "output_size": FEATURES,
                    "num_blocks": 2,
                    "input_layer": "conv2d1",
                    "cgmlp_linear_units": 8,
                    "cgmlp_conv_kernel": 3,
                    "interctc_layer_idx": [1],
                    "interctc_use_conditioning": True,
                    "use_cross_attention": [False, True],
                },
                "model_conf": {"interctc_weight": 0.5, "ctc_asr_only": [True, False]},
            },
            # The task itself says that there is no input layer.
            encoder_conf={},
        )
    },
    "espnet2.tasks.slu": {"encoder_choices": Tiny("SLUTask", "encoder", _asr_batch, ASR)},
    "espnet2.tasks.ssl": {
        "encoder_choices": Tiny(
            "SSLTask",
            "encoder",
            _ssl_batch,
            {
                **SPEECH,
                "token_list": TOKENS,
                "preencoder": None,
                "loss": [{"name": "hubert", "conf": {"num_classes": 4, "final_dim": 4}}],
                "util": [{"name": "mask", "conf": {"mask_length": 2, "mask_prob": 0.5}}],
            },
        )
    },
    "espnet2.tasks.st": {
        "encoder_choices": Tiny("STTask", "encoder", _st_batch, ST),
        "hier_encoder_choices": Tiny("STTask", "hier_encoder", _st_batch, {**ST, **STOCK}),
        "md_encoder_choices": Tiny(
            "STTask", "md_encoder", _st_batch, {**ST, **STOCK}, complete=_return_three_values
        ),
    },
    "espnet3.systems.esp2_asr.task": {
        "encoder_choices": Tiny("ASRTask", "encoder", _asr_batch, ASR)
    },
}

TINY = {(host, name): tiny for host, row in _HOSTS.items() for name, tiny in row.items()}
