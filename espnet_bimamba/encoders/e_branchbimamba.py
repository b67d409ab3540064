"""The E-Branchformer with a Mamba mixer in place of self-attention; not in the paper."""

from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_bimamba.encoders.host import MixerHost


class EBranchBiMambaEncoder(MixerHost, EBranchformerEncoder):
    """ESPnet's ``EBranchformerEncoder`` with the attention of its global branch swapped.

    Options and errors: see :class:`~espnet_bimamba.encoders.host.MixerHost` and ESPnet's encoder.
    """

    name = "e_branchbimamba"
    attention = "attn"
    stock_options = MixerHost.stock_options | {
        "attention_layer_type": "selfattn",
        "rel_pos_type": "latest",
    }

    def _prepare_layers(self, checkpointed: set[int]) -> None:
        super()._prepare_layers(checkpointed)
        self.gradient_checkpoint_layers = sorted(checkpointed)
