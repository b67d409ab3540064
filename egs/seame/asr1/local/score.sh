#!/usr/bin/env bash
# Stage 13 of asr.sh: SEAME's own scoring, which counts Mandarin and English apart, and then the
# mixed error rate, into EXPERIMENT/MER.md. The runner puts it into the working copy.
set -euo pipefail

dump=dump/raw  # Where the references are.

. utils/parse_options.sh

experiment=${1:?name the folder of an experiment}
local/score_stock.sh "${experiment}"
printf '\nMixed error rate, %s/MER.md:\n' "${experiment}"
python3 -m espnet_bimamba.scoring --experiment "${experiment}" --dump "${dump}"
