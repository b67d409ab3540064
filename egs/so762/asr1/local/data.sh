#!/usr/bin/env bash
# Data preparation: local/data.sh FOLDER writes data/{train,dev,test}.
set -euo pipefail

python3 local/data.py "${1:?name the folder that holds train.tsv, dev.tsv, test.tsv and flac/ (run.sh --data)}" data
