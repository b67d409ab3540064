#!/usr/bin/env bash
# Runs ESPnet's own, unchanged vctk_noisy recipe with one of our models: see --help.
exec python3 "$(dirname "${BASH_SOURCE[0]}")/../../run_stock.py" vctk_noisy "$@"
