#!/usr/bin/env bash
# Lints and tests everything, in the same environment as train.sh. Arguments go to pytest.
set -euo pipefail
# shellcheck source=ssd300_vgg16/launch.sh
source "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")/ssd300_vgg16/launch.sh"
cd -- "$root"
up_to_date || set_up </dev/null >&2
installed_dev=$venv/installed-requirements-dev.txt # a copy, written last
if [[ ! -f $installed_dev || $(<requirements-dev.txt) != "$(<"$installed_dev")" ]]; then
  (launch -I -m pip --disable-pip-version-check --no-input install --quiet --no-cache-dir -r requirements-dev.txt >&2)
  cp -- requirements-dev.txt "$installed_dev"
fi
# No cache, or none needed: the checkout may be read-only.
(launch -m ruff check --no-cache)
(launch -m ruff format --no-cache --check)
(launch -c 'import sys; from importlinter.cli import lint_imports_command; lint_imports_command(["--no-cache"])')
launch -m pytest -W ignore::pytest.PytestCacheWarning "$@"
