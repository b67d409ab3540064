#!/usr/bin/env bash
# Stage 13 of asr.sh: mixed error rate, with Mandarin and English apart, into EXPERIMENT/MER.md.
set -euo pipefail

dump=dump/raw  # Where the references are.

. utils/parse_options.sh
. ./path.sh

python3 -m espnet_bimamba.scoring --experiment "${1:?name the folder of an experiment}" --dump "${dump}"
