"""Every YAML of speech enhancement is the row of the paper that it says, and trains as it says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.schedulers.warmup_lr import WarmupLR
from espnet2.tasks.enh import EnhancementTask
from espnet2.tasks.enh_s2t import EnhS2TTask

from espnet_bimamba.cli.conf import shipped
from espnet_bimamba.layers.mamba import SelectiveSSM
from tests.separators.zoo import MISPRINTED, ROWS

SHIPPED = shipped.shipped()
FILES = {file.name.removeprefix("se/"): file for file in SHIPPED if file.path.parent.name == "se"}
#: Those that are not in the paper: the same networks on other corpora, and small ones.
OTHERS = {
    file.name: file
    for file in SHIPPED
    if file.path.name.startswith("train_enh_") and file.path.parent.name != "se"
}
SAME_NETWORK = [name for name in OTHERS if not name.startswith("mini_an4/")]
DOC = Path(__file__).parents[2] / "docs" / "paper.md"
#: Rows of the paper: paper, YAML, ours, paper's, result, command, here.
CELLS = [
    cells
    for line in DOC.read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 7
    and cells[1].startswith("`se/")
]
SCORES = [cells for cells in CELLS if cells[4].count("/") >= 5]
SPEEDS = [cells for cells in CELLS if ";" in cells[4]]
every_yaml = pytest.mark.parametrize("name", FILES)


def load(name):
    return yaml.safe_load(FILES[name].path.read_text())


@pytest.fixture(scope="module")
def parser():
    return EnhancementTask.get_parser()


def test_every_row_of_the_paper_has_its_yaml():
    assert set(FILES) == set(ROWS)


@every_yaml
def test_a_yaml_builds_the_row_that_it_says(name, parser, monkeypatch):
    for cls in (torch.nn.Linear, torch.nn.modules.conv._ConvNd):
        monkeypatch.setattr(cls, "reset_parameters", lambda self: None)
    monkeypatch.setattr(SelectiveSSM, "espnet_initialization_fn", lambda self: None)
    args = parser.parse_args(["--config", str(FILES[name].path)])
    with torch.device("meta"):
        model = EnhancementTask.build_model(args)
    separator, file, row = model.separator, FILES[name], ROWS[name]
    count = sum(parameter.numel() for parameter in model.parameters())
    # 768: the normalized ends (tests/separators/test_counts.py).
    assert (count - 768) / 1e6 == pytest.approx(row.millions, abs=0.00051)
    assert f"{count / 1e6:.2f}" == f"{file.parameters:.2f}"
    assert file.paper_parameters == row.printed
    assert ("misprint" in file.path.read_text()) == (name in MISPRINTED)
    assert separator.causal == row.causal
    assert file.paper.endswith(", causal" if row.causal else ", not causal")
    assert f"-{row.options['layers']}" in file.paper
    assert (separator.block_type, separator.mamba_type) == (
        row.options["block_type"],
        row.options["mamba_type"],
    )
    assert len(separator.layers) == row.options["layers"]
    assert model.encoder.output_dim == 257
    assert model.encoder.window == model.decoder.window == "sqrt_hann"


@every_yaml
def test_nothing_else_differs_between_two_yamls(name):
    config, other = load(name), load("mamba4")
    conf = config.pop("separator_conf")
    other.pop("separator_conf")
    assert config == other
    options = dict(ROWS[name].options)
    if options["mamba_type"] == "extbimamba":
        options["fusion"] = "add"
    if options["mamba_type"] == "attention":
        options["aheads"] = 8
    if options["block_type"] != "independent":
        options["linear_units"] = 1024
    if options["block_type"] == "conformer":
        options["conformer_enc_kernel_size"] = 32
    assert conf == options | {
        "num_spk": 1,
        "adim": 256,
        "dropout_rate": 0.0,
        "ends": "normalized",
        "target": "mask",
        "nonlinear": "sigmoid",
    }


def test_the_transform_and_the_training_are_the_papers():
    config = load("mamba4")
    assert config["encoder_conf"] == {"n_fft": 512, "win_length": 512, "hop_length": 256}
    assert config["decoder_conf"] == config["encoder_conf"]
    assert (config["batch_type"], config["batch_size"], config["max_epoch"]) == (
        "unsorted",
        10,
        150,
    )
    assert config["optim"] == "adam"
    assert config["optim_conf"]["betas"] == [0.9, 0.98]
    assert config["optim_conf"]["eps"] == 1e-9


def test_the_learning_rate_is_the_papers():
    config = load("mamba4")
    assert config["scheduler"] == "warmuplr"
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], **config["optim_conf"])
    scheduler = WarmupLR(optimizer, **config["scheduler_conf"])
    for step in (1, 7, 39_999, 40_000, 40_001, 400_000):
        scheduler.last_epoch = step - 1
        (rate,) = scheduler.get_lr()
        assert rate == pytest.approx(256**-0.5 * min(step**-0.5, step * 40_000**-1.5), rel=1e-12)


def test_no_value_of_the_gradient_leaves_the_papers_range():
    """ESPnet has no clipping by value: the norm of the largest value is the nearest."""
    config = load("mamba4")
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]

    def clipped(*gradients):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(
            parameters, max_norm=config["grad_clip"], norm_type=config["grad_clip_type"]
        )
        return torch.stack([parameter.grad for parameter in parameters])

    small = [[0.5, -0.9, 0.1], [0.2, 0.3, 0.99]]
    torch.testing.assert_close(clipped(*small), torch.tensor(small))
    large = [[0.5, -4.0, 0.1], [0.2, 2.0, 0.99]]
    torch.testing.assert_close(clipped(*large), torch.tensor(large) / 4)


def test_the_document_has_every_row_once_with_scores():
    assert sorted(cells[1] for cells in SCORES) == sorted(f"`se/{name}`" for name in FILES)
    assert len(SCORES) + len(SPEEDS) == len(CELLS)


def test_the_document_has_every_table_of_enhancement():
    assert set.union(*(_tables_of_row(cells) for cells in CELLS)) == set("123456") | {
        "12",
        "13",
        "14",
    }


def _tables_of_row(cells):
    return set(re.findall(r"\bT(\d+)", cells[0]))


@pytest.mark.parametrize("cells", CELLS, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_row_says_what_its_yaml_says(cells):
    label, name, ours, papers, _, command, here = cells
    file = FILES[name.strip("`").removeprefix("se/")]
    assert (ours, papers) == (f"{file.parameters:.2f}", f"{file.paper_parameters:.2f}")
    assert command == f"`egs/se/enh1/run.sh --model {file.name.removeprefix('se/')}`"
    assert here == "not run"
    model = file.paper.partition("enhancement, ")[2].replace('"', "")
    assert label.endswith(f", {model}")


@every_yaml
def test_a_yaml_names_the_tables_of_its_rows(name):
    rows = [_tables_of_row(cells) for cells in CELLS if cells[1] == f"`se/{name}`"]
    assert set.union(*rows) == set(re.findall(r"\d+", FILES[name].paper.partition(", speech")[0]))


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_on_another_corpus_the_network_is_that_of_the_paper(name):
    config = yaml.safe_load(OTHERS[name].path.read_text())
    papers = load(name.partition("/")[2])
    for key in ("encoder", "separator", "decoder"):
        assert config[key] == papers[key]
        assert config[f"{key}_conf"] == papers[f"{key}_conf"]
    for key in ("criterions", "optim", "scheduler", "grad_clip", "grad_clip_type"):
        assert config[key] == papers[key]
    assert config["optim_conf"] | {"lr": None} == papers["optim_conf"] | {"lr": None}


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_on_another_corpus_the_learning_rate_has_the_papers_shape(name):
    """It rises for fewer updates: as many as the YAML says in a comment."""
    config = yaml.safe_load(OTHERS[name].path.read_text())
    warmup, peak = {"so762_se": (200, 1e-3), "vctk_noisy": (10_000, (256 * 10_000) ** -0.5)}[
        name.partition("/")[0]
    ]
    assert config["scheduler_conf"] == {"warmup_steps": warmup}
    assert config["optim_conf"]["lr"] == pytest.approx(peak, rel=1e-9)


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_on_another_corpus_espnet_knows_every_option(name):
    # A parser of its own: ESPnet's keeps what one YAML says as the default of the next.
    args = EnhancementTask.get_parser().parse_args(["--config", str(OTHERS[name].path)])
    iterators = {"so762_se": ("sequence", 32000), "vctk_noisy": ("chunk", None)}
    assert (args.iterator_type, args.speech_segment) == iterators[name.partition("/")[0]]


@pytest.mark.parametrize("name", ["mini_an4/extbimamba", "mini_an4/mamba"])
def test_a_small_separator_builds_and_trains(name, parser):
    args = parser.parse_args(["--config", str(OTHERS[name].path)])
    model = EnhancementTask.build_model(args)
    speech = torch.randn(2, 8000)
    lengths = torch.tensor([8000, 6000])
    noisy = speech + torch.randn(2, 8000)
    loss, *_ = model(
        speech_mix=noisy,
        speech_mix_lengths=lengths,
        speech_ref1=speech,
        speech_ref1_lengths=lengths,
    )
    loss.backward()
    assert loss.isfinite()
    assert model.separator.causal == (name == "mini_an4/mamba")
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_both_halves_of_the_paper_are_one_model():
    file = OTHERS["mini_an4/s2t_conbimamba"]
    args = EnhS2TTask.get_parser().parse_args(["--config", str(file.path)])
    args.token_list = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
    model = EnhS2TTask.build_model(args)
    assert file.encoder == "bimamba"
    assert type(model.enh_model.separator).__name__ == "BiMambaSeparator"
    assert type(model.s2t_model.encoder).__module__ == "espnet_bimamba.encoders.conbimamba"
    speech, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    text, text_lengths = torch.tensor([[2, 3, 2], [3, 2, -1]]), torch.tensor([3, 2])
    loss, *_ = model(
        speech=speech + torch.randn(2, 16000),
        speech_lengths=lengths,
        speech_ref1=speech,
        speech_ref1_lengths=lengths,
        text_spk1=text,
        text_spk1_lengths=text_lengths,
    )
    loss.backward()
    assert loss.isfinite()
    # What is heard teaches what is enhanced, too.
    assert model.enh_model.separator.input_layer[0].weight.grad.abs().max() > 0
