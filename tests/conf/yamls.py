"""The YAMLs that reproduce the paper, by their names, and the vocabularies of their recipes."""

import yaml

from espnet_bimamba.cli.conf import shipped

#: Tokens of each recipe: what its stock run.sh asks for (test_vocabularies.py), with SEAME's
#: Mandarin characters as many as it expects. ESPnet has none for ASRU; the paper does not print
#: the number, and its counts allow 6920 to 6922.
TOKENS = {"librispeech_100": 5000, "librispeech": 5000, "seame": 5626, "asru": 6921, "an4": 30}

FILES = {file.name: file for file in shipped.shipped() if file.path.parent.name in TOKENS}
TRAININGS = [name for name, file in FILES.items() if file.encoder is not None]
DECODINGS = [name for name, file in FILES.items() if file.encoder is None]


def recipe(name):
    return name.partition("/")[0]


def load(name):
    return yaml.safe_load(FILES[name].path.read_text())
