#!/usr/bin/env bash
# Stage 1 of asr.sh: checks the corpus in ${ASRU}, of run.sh or of db.sh, and writes
# data/{train,dev,test}.
set -euo pipefail

train_dir=         # Folder of the training set in ${ASRU}, if it is named otherwise than README.md says.
dev_dir=           # The same for the development set.
test_dir=          # The same for the test set.
skip_faulty=false  # Leave out recordings that lack a transcript and the like, instead of stopping.

. utils/parse_options.sh
given=${ASRU:-}
. ./db.sh
. ./path.sh

ASRU=${given:-${ASRU:-}}
if [ -z "${ASRU}" ]; then
    echo "name the corpus: run.sh --corpus FOLDER, or ASRU=FOLDER in the environment or in ${PWD}/db.sh" >&2
    exit 2
fi

options=()
if "${skip_faulty}"; then
    options+=(--skip_faulty)
fi
python3 local/data.py --train "${train_dir}" --dev "${dev_dir}" --test "${test_dir}" \
    ${options[@]+"${options[@]}"} "${ASRU}" data

for set in train dev test; do
    # Its idea of what can be printed depends on the locales that are installed.
    utils/validate_data_dir.sh --no-feats --non-print "data/${set}"
done
