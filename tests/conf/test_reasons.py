"""What a YAML of the paper has to give a reason for, it gives in a comment at its beginning."""

import re

import pytest
import yaml

from espnet_bimamba.cli.conf import shipped
from tests.conf import arithmetic
from tests.conf.printed_rates import millions
from tests.conf.test_counts import DIFFERENT
from tests.conf.yamls import FILES, TOKENS, load

#: Of recognition, the ESPnet3 way too, and of enhancement.
WITH_A_COUNT = {file.name: file for file in shipped.shipped() if file.parameters}
#: The parameters of relative positions in a Conformer's layer of width 256.
POSITIONS = 256 * 256 + 2 * 256


def comments(name):
    lines = WITH_A_COUNT[name].path.read_text().splitlines()
    return [line for line in lines if line.startswith("# ")]


def mixer(name):
    config = yaml.safe_load(WITH_A_COUNT[name].path.read_text())
    config = config.get("model", config)
    return config.get("separator_conf", config["encoder_conf"])


EXTBIMAMBAS = [name for name in WITH_A_COUNT if mixer(name).get("mamba_type") == "extbimamba"]
NOISY = [name for name in EXTBIMAMBAS if mixer(name).get("A_init") == "s4d_real_noise"]


@pytest.mark.parametrize("name", EXTBIMAMBAS)
def test_the_fusion_has_a_reason(name):
    fusion = mixer(name)["fusion"]
    [reason] = [line for line in comments(name) if line.startswith("# fusion ")]
    assert re.match(rf"# fusion {fusion}(,| is) \w+", reason)


def test_every_extbimamba_of_the_paper_is_looked_at():
    assert len(EXTBIMAMBAS) == 49
    assert {*EXTBIMAMBAS} > {name for name in FILES if "extbimamba" in name}


@pytest.mark.parametrize("name", NOISY)
def test_the_noise_of_the_A_matrix_is_said_to_be_our_reading(name):
    [reason] = [line for line in comments(name) if line.startswith("# A_init s4d_real_noise ")]
    assert "prints no law of the noise: this one is our reading" in reason


def test_the_ablations_that_start_from_the_noise_are_looked_at():
    assert len(NOISY) == 9
    assert {"librispeech_100/conextbimamba", "librispeech_100/conextbimamba_d_conv2"} < {*NOISY}


def why_ours_is_not_the_papers_count(name):
    corpus, model = name.split("/")
    if corpus == "librispeech":
        host = "con" if model.startswith("con") else "trans"
        stock = float(millions((corpus, f"{host}former")))
        inner, outer = (
            float(millions((corpus, f"{host}{mixer}"))) - stock
            for mixer in ("innbimamba", "extbimamba")
        )
        return rf"what a swap adds at width 256 \(\+{inner:.2f} M, \+{outer:.2f} M\); at width 512"
    if corpus == "seame":
        return "Table 15 repeats LibriSpeech-100's count"
    config = load(name)
    blocks = config["encoder_conf"]["num_blocks"]
    if model.endswith("_large"):
        return f"{blocks} layers come nearest to the printed count"
    if config["encoder"] == "bimamba":
        return "no depth comes nearer"
    with_positions = arithmetic.parameters(config, TOKENS[corpus]) + blocks * POSITIONS
    return rf"positions' {POSITIONS:,} parameters a layer.*\(with them {with_positions / 1e6:.2f} M"


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_where_ours_is_not_the_papers_count_the_yaml_says_why(name):
    reason = why_ours_is_not_the_papers_count(name)
    assert [line for line in comments(name) if re.search(reason, line)]
