#!/usr/bin/env bash
# Stage 1 of enh.sh: writes data/{train,valid,test} from ${SE_CORPUS} and, for the paper's protocol,
# ${SE_NOISES}. `local/data.sh --help` has its options, which go into --local_data_opts.
set -euo pipefail

if [ -z "${SE_CORPUS:-}" ]; then
    echo "name the folder of the speech (LibriSpeech, or so762): run.sh --corpus FOLDER" >&2
    exit 2
fi
. ./path.sh

python3 local/data.py --protocol "${SE_PROTOCOL}" --corpus "${SE_CORPUS}" \
    ${SE_NOISES:+--noises "${SE_NOISES}"} "$@"
for set in train valid test; do
    utils/validate_data_dir.sh --no-feats --no-text "data/${set}"
done
