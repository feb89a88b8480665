#!/usr/bin/env bash
# Lints, checks the types of, and tests everything, in the same environment as train.sh. Arguments go to pytest.
set -euo pipefail
# shellcheck source=ssd300_vgg16/launch.sh
source "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")/ssd300_vgg16/launch.sh"
cd -- "$root"
up_to_date || set_up </dev/null >&2
installed_dev=$venv/installed-requirements-dev.txt # a copy, written last
has_dev() {
  [[ -f $installed_dev && $(<requirements-dev.txt) == "$(<"$installed_dev")" ]]
}
has_dev || (
  # Under set-up's lock: two calls at a time would change the same packages.
  wait_for_others "$venv/bin/python"
  has_dev && exit
  (launch -I -m pip --disable-pip-version-check --no-input install --quiet --no-cache-dir -r requirements-dev.txt >&2)
  cp -- requirements-dev.txt "$installed_dev"
) 9>"$venv/.lock" </dev/null
# No cache, or none needed: the checkout may be read-only.
(launch -m ruff check --no-cache)
(launch -m ruff format --no-cache --check)
# Meanwhile the CPU's kernels are compiled, if they have not been: else each process would do so that needs them first.
(launch -c 'from ssd300_vgg16.network.cpu import convolution, layers, loss, narrow') &
(launch -c 'import sys; from importlinter.cli import lint_imports_command; lint_imports_command(["--no-cache"])')
(launch -m mypy --cache-dir=/dev/null)
wait
# Two at a time; a file's tests stay together, as they share what is costly to make. In the order of tests/conftest.py.
(($# > 0)) || set -- -n 2 --dist loadfile --no-loadscope-reorder
launch -m pytest -W ignore::pytest.PytestCacheWarning "$@"
