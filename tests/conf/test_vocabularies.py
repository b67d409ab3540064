"""The number of tokens of each corpus is what its stock run.sh asks asr.sh for."""

import re
import shutil
import subprocess

import pytest
import yaml

from espnet_bimamba.cli.conf import shipped
from tests.conf.yamls import TOKENS, TRAININGS, recipe

#: ESPnet3's too.
COUNTED = [file for file in shipped.shipped() if file.parameters and recipe(file.name) in TOKENS]


@pytest.mark.parametrize("corpus", sorted(set(TOKENS) - {"asru"}))
def test_the_vocabulary_is_the_stock_recipes(corpus, tree, tmp_path):
    folder = tree / "egs2" / corpus / "asr1"
    shutil.copy(folder / "run.sh", tmp_path)
    asr = tmp_path / "asr.sh"
    asr.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    asr.chmod(0o755)
    # SEAME's first stage would write the Mandarin characters that it found here.
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "token.man.2").touch()
    command = ["bash", "run.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    options = done.stdout.splitlines()
    [usual] = re.findall(r"^nbpe=(\d+)", (folder / "asr.sh").read_text(), re.MULTILINE)
    asked = options[options.index("--nbpe") + 1] if "--nbpe" in options else usual
    assert TOKENS[corpus] == int(asked)


@pytest.mark.parametrize("file", COUNTED, ids=lambda file: file.name)
def test_a_yaml_says_of_how_many_tokens_its_count_is(file):
    tokens, text = TOKENS[recipe(file.name)], file.path.read_text()
    assert f"\n# Parameters: {file.parameters:.2f} M with {tokens} tokens, paper " in text
    # ESPnet3 has the number in the YAML, ESPnet2 in its run.sh.
    assert yaml.safe_load(text).get("tokenizer", {}).get("vocab_size", tokens) == tokens


def test_every_count_of_a_recipe_is_looked_at():
    assert {file.name for file in COUNTED} >= {*TRAININGS}
