"""The Transformer with a Mamba mixer in place of self-attention: TransBiMamba in the paper."""

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_bimamba.encoders.streaming import StreamingHost, WithoutBlocks


class TransBiMambaEncoder(StreamingHost, TransformerEncoder, WithoutBlocks):
    """ESPnet's ``TransformerEncoder`` with its attention swapped (Figure 2b).

    Options and errors: see :class:`~espnet_bimamba.encoders.host.MixerHost`,
    :class:`~espnet_bimamba.encoders.streaming.StreamingHost` and ESPnet's encoder.
    """

    name = "transbimamba"
