"""The number of tokens of each corpus is what its stock run.sh asks asr.sh for."""

import re
import shutil
import subprocess

import pytest

from tests.conf.yamls import TOKENS


@pytest.mark.parametrize("corpus", sorted(set(TOKENS) - {"asru"}))
def test_the_vocabulary_is_the_stock_recipes(corpus, tree, tmp_path):
    recipe = tree / "egs2" / corpus / "asr1"
    shutil.copy(recipe / "run.sh", tmp_path)
    asr = tmp_path / "asr.sh"
    asr.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    asr.chmod(0o755)
    # SEAME's first stage would write the Mandarin characters that it found here.
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "token.man.2").touch()
    command = ["bash", "run.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    options = done.stdout.splitlines()
    [usual] = re.findall(r"^nbpe=(\d+)", (recipe / "asr.sh").read_text(), re.MULTILINE)
    asked = options[options.index("--nbpe") + 1] if "--nbpe" in options else usual
    assert TOKENS[corpus] == int(asked)
