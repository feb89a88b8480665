#!/usr/bin/env bash
# Trains the detector. The first use sets everything up. `bash train.sh --help` lists the options.
set -euo pipefail
# shellcheck source=ssd300_vgg16/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/ssd300_vgg16/launch.sh"
start ssd300_vgg16.train "$@"
