"""The Conformer with a Mamba mixer in place of self-attention: ConBiMamba in the paper."""

from typing import Any, Self

from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_bimamba.encoders.host import check_real_frames_only, count_real_frames_only
from espnet_bimamba.encoders.streaming import StreamingHost, WithoutBlocks
from espnet_bimamba.errors import OptionError
from espnet_bimamba.layers.checks import check_flag


class ConBiMambaEncoder(StreamingHost, ConformerEncoder, WithoutBlocks):
    """ESPnet's ``ConformerEncoder`` with its attention swapped (Figure 2c).

    Args:
        input_size: Width of the input features.
        mask_batch_norm: Whether batch norm in the convolution module counts real frames only.
            Stock counts padded ones, too; only training sees a difference.
        **options: See :class:`~espnet_bimamba.encoders.host.MixerHost`,
            :class:`~espnet_bimamba.encoders.streaming.StreamingHost` and ESPnet's encoder.

    Raises:
        UnusedOptionError: A stock option that only attention reads.
        OptionError: An option of ours has a value that cannot be honoured.
    """

    name = "conbimamba"
    stock_options = StreamingHost.stock_options | {
        "selfattention_layer_type": "selfattn",
        "rel_pos_type": "latest",
    }

    def __init__(self, input_size: int, mask_batch_norm: bool = False, **options: Any) -> None:
        check_flag("mask_batch_norm", mask_batch_norm)
        if mask_batch_norm and not options.get("use_cnn_module", True):
            raise OptionError(
                "mask_batch_norm",
                mask_batch_norm,
                "false with use_cnn_module: false",
                "Only the convolution module has a batch norm.",
            )
        super().__init__(input_size, **options)
        self.mask_batch_norm = mask_batch_norm
        if mask_batch_norm:
            count_real_frames_only(self)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training; Lightning and PyTorch do so before each epoch.

        Raises:
            OptionError: ``mask_batch_norm`` was lost, to ``sync_batchnorm`` for example.
        """
        if mode and self.mask_batch_norm:
            check_real_frames_only(self)
        return super().train(mode)
