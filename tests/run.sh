#!/usr/bin/env bash
# Lints and tests everything, in the same environment as train.sh. Arguments go to pytest.
set -euo pipefail
# shellcheck source=ssd300_vgg16/launch.sh
source "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")/ssd300_vgg16/launch.sh"
cd -- "$root"
# No cache, or none needed: the checkout may be read-only.
(launch -m ruff check --no-cache)
(launch -m ruff format --no-cache --check)
launch -m pytest -W ignore::pytest.PytestCacheWarning "$@"
