"""The size of a recognition model in closed form, from nothing but its YAML and its vocabulary.

Written down from the shapes of the layers, not from code: what ESPnet's task builds must agree to
the last parameter. ``D`` is the encoder's width, ``V`` the number of tokens.
"""

import math

MELS = 80

#: The paper's mixers at d_state 16, d_conv 4, expand 2 (tests/layers/test_mixers.py).
KNOWN = {
    ("mamba", None, 256): 437_760,
    ("innbimamba", None, 256): 482_304,
    ("extbimamba", "add", 256): 875_520,
    ("extbimamba", "concat", 256): 1_006_848,
    ("mamba", None, 512): 1_694_720,
    ("innbimamba", None, 512): 1_816_576,
    ("extbimamba", "add", 512): 3_389_440,
    ("extbimamba", "concat", 512): 3_914_240,
}


def linear(inputs, outputs, bias=True):
    return inputs * outputs + (outputs if bias else 0)


def norm(width):
    return 2 * width


def ssm(inner, states, kernel, rank):
    """Depthwise convolution, x_proj, dt_proj, A_log and D of one direction."""
    x_proj = linear(inner, rank + 2 * states, bias=False)
    return inner * kernel + inner + x_proj + linear(rank, inner) + inner * states + inner


def mixer(conf):
    """A Mamba, the two directions of which share or do not share their projections."""
    D = conf["output_size"]
    inner = conf.get("expand", 2) * D
    direction = ssm(inner, conf.get("d_state", 16), conf.get("d_conv", 4), math.ceil(D / 16))
    projections = linear(D, 2 * inner, bias=False) + linear(inner, D, bias=False)
    kind, fusion = conf["mamba_type"], conf.get("fusion")
    size = {
        "mamba": projections + direction,
        "innbimamba": projections + 2 * direction,
        "extbimamba": 2 * (projections + direction),
    }[kind]
    if fusion == "concat":
        size += linear(2 * D, D)
    if not {"expand", "d_state", "d_conv"} & set(conf):
        assert size == KNOWN[kind, fusion, D]
    return size


def attention(D, relative=False):
    return 4 * linear(D, D) + (linear(D, D, bias=False) + 2 * D if relative else 0)


def feed_forward(D, units):
    return linear(D, units) + linear(units, D)


def subsampling(D, kind):
    """Two convolutions over time and frequency, and a projection of what is left of the latter."""
    kernel, stride = {"conv2d": (3, 2), "conv2d6": (5, 3)}[kind]
    height = (((MELS - 3) // 2 + 1) - kernel) // stride + 1
    return (9 * D + D) + (kernel**2 * D * D + D) + linear(D * height, D)


def gated_mlp(D, units, kernel):
    half = units // 2
    gate = norm(half) + half * kernel + half
    return linear(D, units) + gate + linear(half, D)


def convolution_module(D, kernel):
    return linear(D, 2 * D) + (D * kernel + D) + norm(D) + linear(D, D)


def _mix(conf):
    if conf.get("mamba_type") == "attention":
        return attention(conf["output_size"])
    if "mamba_type" in conf:
        return mixer(conf)
    # legacy_rel_pos, what SEAME's stock file has by default, has the same parameters.
    return attention(conf["output_size"], relative=conf.get("pos_enc_layer_type") == "rel_pos")


def conformer_layer(conf):
    D = conf["output_size"]
    halves = 2 if conf["macaron_style"] else 1
    return (
        _mix(conf)
        + halves * (feed_forward(D, conf["linear_units"]) + norm(D))
        + convolution_module(D, conf["cnn_module_kernel"])
        + 3 * norm(D)
    )


def transformer_layer(conf):
    D = conf["output_size"]
    return _mix(conf) + feed_forward(D, conf["linear_units"]) + 2 * norm(D)


def independent_layer(conf):
    D = conf["output_size"]
    layer = _mix(conf) + norm(D)
    return layer + feed_forward(D, conf["linear_units"]) + norm(D) if conf["ffn"] else layer


def branchformer_layer(conf):
    D = conf["output_size"]
    mlp = gated_mlp(D, conf["cgmlp_linear_units"], conf["cgmlp_conv_kernel"])
    return _mix(conf) + mlp + linear(2 * D, D) + 3 * norm(D)


def e_branchformer_layer(conf):
    D = conf["output_size"]
    merge = 2 * D * conf["merge_conv_kernel"] + 2 * D
    both_feed_forwards = 2 * (feed_forward(D, conf["linear_units"]) + norm(D))
    return branchformer_layer(conf) + merge + both_feed_forwards


LAYERS = {
    "conformer": conformer_layer,
    "conbimamba": conformer_layer,
    "transformer": transformer_layer,
    "transbimamba": transformer_layer,
    "bimamba": independent_layer,
    "branchformer": branchformer_layer,
    "e_branchformer": e_branchformer_layer,
    "e_branchbimamba": e_branchformer_layer,
}


def encoder(config, V):
    conf = config["encoder_conf"]
    D = conf["output_size"]
    conditioning = linear(V, D) if conf.get("interctc_use_conditioning") else 0
    layers = conf["num_blocks"] * LAYERS[config["encoder"]](conf)
    return subsampling(D, conf["input_layer"]) + layers + norm(D) + conditioning


def decoder(config, V):
    if config["model_conf"]["ctc_weight"] == 1.0:
        return 0
    D, conf = config["encoder_conf"]["output_size"], config["decoder_conf"]
    if config["decoder"] == "transducer":
        H, J = conf["hidden_size"], config["joint_net_conf"]["joint_space_size"]
        lstm = conf["num_layers"] * 4 * 2 * linear(H, H)
        return V * H + lstm + linear(D, J) + linear(H, J) + linear(J, V)
    layer = 2 * attention(D) + feed_forward(D, conf["linear_units"]) + 3 * norm(D)
    return V * D + conf["num_blocks"] * layer + norm(D) + linear(D, V)


def parameters(config, V):
    """Parameters of the model that ``config``, a training YAML, describes."""
    ctc = linear(config["encoder_conf"]["output_size"], V)
    return encoder(config, V) + decoder(config, V) + ctc
