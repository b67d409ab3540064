"""Tables 9, 10 and 11 of the paper: the settings that it prints, for each corpus.

A YAML follows ESPnet's stock file, as the paper says that it did; where the two disagree, the YAML
and docs/paper.md say so.
"""

CORPORA = ("librispeech_100", "librispeech", "asru", "seame")
#: The table of each encoder's host. An independent stack is trained as the Transformer.
TABLES = {
    "transformer": 9,
    "transbimamba": 9,
    "bimamba": 9,
    "conformer": 10,
    "conbimamba": 10,
    "branchformer": 11,
}
#: What no column of no table varies.
EVERYWHERE = {
    "window": (400, 400, 400, 400),
    "time warp": (5, 5, 5, 5),
    "frequency masks": (2, 2, 2, 2),
    "time masks": (2, 2, 2, 2),
    "width": (256, 512, 256, 256),
    "heads": (4, 8, 4, 4),
    "weight decay": (1e-6, 1e-6, 1e-6, 1e-6),
    "dropout": (0.1, 0.1, 0.1, 0.1),
    "ctc weight": (0.3, 0.3, 0.3, 0.3),
    "label smoothing": (0.1, 0.1, 0.1, 0.1),
}
PRINTED = {
    9: EVERYWHERE
    | {
        "hop": (160, 128, 160, 160),
        "frequency mask": (27, 30, 27, 27),
        "time mask": (0.05, 40, 0.05, 0.05),
        "units": (1024, 2048, 1024, 2048),
        "layers": (18, 18, 18, 24),
        "epochs": (70, 100, 70, 70),
        "learning rate": (2e-3, 2e-3, 2e-3, 2e-3),
        "warm-up": (15_000, 25_000, 15_000, 15_000),
    },
    10: EVERYWHERE
    | {
        "hop": (160, 160, 160, 160),
        "frequency mask": (27, 27, 30, 30),
        "time mask": (0.05, 0.05, 40, 40),
        "units": (1024, 2048, 2048, 2048),
        "layers": (12, 12, 12, 12),
        "kernel": (31, 31, 31, 31),
        "epochs": (120, 50, 70, 70),
        "learning rate": (2e-3, 2.5e-3, 1e-3, 1e-3),
        "warm-up": (15_000, 40_000, 25_000, 25_000),
    },
    11: EVERYWHERE
    | {
        "hop": (160, 160, 160, 160),
        "frequency mask": (27, 27, 27, 27),
        "time mask": (0.05, 0.05, 0.05, 0.05),
        "units": (1024, 2048, 2048, 1024),
        "layers": (12, 18, 12, 12),
        "kernel": (31, 31, 31, 31),
        "epochs": (70, 70, 70, 70),
        "learning rate": (2e-3, 2.5e-3, 2e-3, 2e-3),
        "warm-up": (15_000, 40_000, 15_000, 15_000),
    },
}


def settings(config):
    """What those tables print, of a training YAML; None is what its model has not."""
    encoder, frontend = config["encoder_conf"], config.get("frontend_conf", {})
    masks = config["specaug_conf"]
    _, widest = masks.get("time_mask_width_ratio_range") or masks["time_mask_width_range"]
    n_fft = frontend.get("n_fft", 512)
    return {
        # What espnet2/asr/frontend/default.py takes where nothing is said.
        "window": frontend.get("win_length", n_fft),
        "hop": frontend.get("hop_length", 128),
        "time warp": masks["time_warp_window"],
        "frequency masks": masks["num_freq_mask"],
        "frequency mask": masks["freq_mask_width_range"][1],
        "time masks": masks["num_time_mask"],
        "time mask": widest,
        "width": encoder["output_size"],
        "units": encoder.get("linear_units", encoder.get("cgmlp_linear_units")),
        "heads": encoder.get("attention_heads"),
        "layers": encoder["num_blocks"],
        "kernel": encoder.get("cnn_module_kernel", encoder.get("cgmlp_conv_kernel")),
        "epochs": config["max_epoch"],
        "learning rate": config["optim_conf"]["lr"],
        "warm-up": config["scheduler_conf"]["warmup_steps"],
        "weight decay": config["optim_conf"].get("weight_decay", 0.0),
        "dropout": encoder["dropout_rate"],
        "ctc weight": config["model_conf"]["ctc_weight"],
        "label smoothing": config["model_conf"]["lsm_weight"],
    }


def differences(config, corpus):
    """Setting -> what the paper prints and what the YAML has, where they differ; and the table."""
    table, column = TABLES[config["encoder"]], CORPORA.index(corpus)
    ours = settings(config)
    printed = {setting: values[column] for setting, values in PRINTED[table].items()}
    return table, {
        setting: (value, ours[setting])
        for setting, value in printed.items()
        if ours[setting] not in (None, value)
    }
