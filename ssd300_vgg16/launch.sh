# shellcheck shell=bash
# Set-up and start, for the scripts beside README.md to source. `start module arguments` makes the Python environment
# if need be (in .venv, or where SSD_VENV says) and becomes that Python, in the caller's directory, from which no module
# is imported. `launch` is the same with Python's own arguments.
# PYTHON names the Python 3.10 to make it from; otherwise one is looked for.

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
venv=${SSD_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
installed=$venv/.installed-requirements # a copy of the requirements that all got installed: written last
known=$venv/lib/python3.10/site-packages/ssd300_vgg16.pth # by which $venv/bin/python knows the package in any folder
needed_mb=8500                          # 5.7 GB installed, and 2.5 GB of downloads that pip keeps until the end

start() {
  launch -I "$root/ssd300_vgg16/start.py" "$@"
}

launch() {
  up_to_date || set_up </dev/null >&2
  [[ -f $known ]] || { mkdir -p -- "${known%/*}" && printf '%s\n' "$root" >"$known"; } 2>/dev/null || :
  unset PYTHONHOME
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  exec "$venv/bin/python" "$@"
}

up_to_date() {
  [[ -x $venv/bin/python && -f $installed && $(<"$root/requirements.txt") == "$(<"$installed")" ]]
}

set_up() {
  check_place
  local python
  python=$(find_python)
  (
    trap 'die "interrupted: run the same command again to do it over"' INT TERM
    wait_for_others "$python"
    up_to_date || install "$python"
  ) 9>"$venv/.lock"
}

check_place() {
  [[ $(uname -sm) == "Linux x86_64" ]] ||
    die "OneFlow 0.9.0 exists for Linux on x86-64 only and this is $(uname -sm): use such a machine or a container"
  [[ $root != *:* && $venv != *:* ]] ||
    die "Python cannot search a folder whose name holds a colon: rename it ($root, $venv)"
  mkdir -p -- "$venv" 2>/dev/null && [[ -w $venv ]] ||
    die "cannot write to $venv: set SSD_VENV to a folder that you can write to, such as SSD_VENV=~/ssd-venv"
  [[ -e $venv/.lock || -z $(ls -A -- "$venv") ]] ||
    die "$venv was not made by this script and is not empty: move it away, or set SSD_VENV to a new folder"
}

find_python() {
  local candidate answer advice=""
  if [[ -n ${PYTHON:-} ]]; then
    answer=$(real_python "$PYTHON") ||
      die "PYTHON=$PYTHON is of no use here ($answer): set PYTHON to a CPython 3.10, or unset it to have one looked for"
    printf '%s\n' "$answer"
    return
  fi
  for candidate in python3.10 python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.10*/bin/python uv; do
    [[ $candidate != uv ]] || candidate=$(uv_python) || break
    if answer=$(real_python "$candidate"); then
      printf '%s\n' "$answer"
      return
    fi
    [[ $answer != *apt-get* ]] || advice=" ($candidate starts, but $answer)"
  done
  die "no usable Python 3.10 was found$advice: install it (apt-get install python3.10-venv, pyenv install 3.10, or uv" \
    "from https://docs.astral.sh/uv), or set PYTHON to one, and run again"
}

# Prints the executable behind a Python 3.10 that can make environments, or why $1 is none. Run, not looked at: a
# pyenv shim exists without starting. The executable itself, because a link may lead to another version one day.
real_python() {
  local answer status=0
  command -v -- "$1" >/dev/null || {
    echo "there is no such command"
    return 1
  }
  answer=$("$1" -I -c '
import os, platform, sys
if sys.version_info[:2] != (3, 10) or platform.python_implementation() != "CPython":
    sys.exit("it is %s %s" % (platform.python_implementation(), platform.python_version()))
libc, libc_version = platform.libc_ver()
if sys.maxsize < 2**32 or libc != "glibc" or tuple(map(int, libc_version.split("."))) < (2, 28):
    sys.exit("it is not a 64-bit Python on glibc 2.28 or newer, which the pinned packages need")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("its ensurepip is missing: on Debian and Ubuntu, apt-get install python3.10-venv")
print(os.path.realpath(sys.executable))' 2>&1) || status=$?
  printf '%s\n' "${answer%%$'\n'*}"
  return "$status"
}

uv_python() {
  local find=(uv python find --python-preference only-managed 3.10)
  command -v uv >/dev/null || return 1
  "${find[@]}" 2>/dev/null && return
  say "fetching Python 3.10 with uv"
  uv python install --quiet 3.10 &>/dev/null && "${find[@]}" 2>/dev/null
}

# An flock on file 9 is held by this shell and all it starts, so a pip that outlives a killed shell is waited for too.
wait_for_others() {
  "$1" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "waiting for another set-up in $venv to finish"
  "$1" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null ||
    die "cannot lock $venv/.lock: set SSD_VENV to a folder on a local disk and run again"
}

# Without the copy of the requirements an environment is half-made and of no use: a killed pip leaves broken packages.
install() {
  if [[ -x $venv/bin/python && -f $installed ]]; then
    say "requirements.txt has changed: changing the packages in $venv"
    mv -f -- "$installed" "$venv/previous-requirements.txt"
  elif [[ -x $venv/bin/python && -n $(chosen_oneflow) ]]; then
    say "completing the packages in $venv"
  else
    rm -rf -- "${venv:?}"/* "$installed"
    make_environment "$1"
  fi
  cp -- "$root/requirements.txt" "$venv/requirements.txt"
  install_packages
  sync -f -- "$venv" # after a power cut, the copy must not be there without the packages
  mv -f -- "$venv/requirements.txt" "$installed"
}

# Prints the version of a OneFlow that is not from requirements.txt: the user's own build, for newer GPUs, say.
chosen_oneflow() {
  local folder version
  for folder in "${known%/*}"/oneflow-*.dist-info; do
    version=${folder##*/oneflow-} version=${version%.dist-info}
    [[ ! -d $folder ]] || grep -qs "^oneflow==$version\\( \\|\$\\)" "$root/requirements.txt" \
      "$venv/previous-requirements.txt" || printf '%s\n' "$version"
  done
}

make_environment() {
  local free_blocks block_size free_mb
  read -r free_blocks block_size < <(stat -f -c '%a %S' -- "$venv")
  free_mb=$((free_blocks * block_size / 1000000))
  ((free_mb >= needed_mb)) ||
    die "$venv needs $needed_mb MB of disk space and $free_mb MB are free: free some, or set SSD_VENV to another disk"
  say "making $venv with $1, once: about 2.5 GB to download, then a minute or two to install"
  "$1" -I -m venv "$venv" >"$venv/set-up.log" 2>&1 ||
    die "$1 could not make an environment in $venv: see $venv/set-up.log"
}

# No pip cache: pip 23 reads a whole package into memory to keep it there, 3 to 5 GB for OneFlow.
install_packages() {
  local pip=(env PIP_USER=0 TMPDIR="$venv/tmp" "$venv/bin/python" -I -u -m pip --disable-pip-version-check --no-input)
  local log=$venv/set-up.log changed=$venv/changed-requirements.txt wanted=$venv/wanted-requirements.txt
  local chosen left_alone='^#'
  chosen=$(chosen_oneflow)
  if [[ -n $chosen ]]; then
    say "leaving OneFlow $chosen as it is, and CUDA's libraries: it is not from requirements.txt"
    left_alone='^#\|^oneflow==\|^nvidia-'
  fi
  mkdir -p -- "$venv/tmp"
  grep -v "$left_alone" "$venv/requirements.txt" >"$wanted" || die "$root/requirements.txt names no packages"
  if grep -vxFf "$venv/requirements.txt" "$venv/previous-requirements.txt" 2>/dev/null | grep -v "$left_alone" |
    grep . >"$changed"; then
    "${pip[@]}" uninstall --yes -r "$changed" >"$log" 2>&1 || die "$(pip_failure "$log")"
  fi
  "${pip[@]}" install --no-cache-dir --progress-bar off -r "$wanted" 2>&1 | tee "$log" |
    report_progress || die "$(pip_failure "$log")"
  rm -rf -- "$venv/tmp"
}

# What pip prints, as a few lines: which of how many packages, and how large.
report_progress() {
  local line number=0 all download='^ *Downloading ([^ ]* \([0-9.]* [MG]B\))'
  all=$(grep -c == "$root/requirements.txt")
  while IFS= read -r line; do
    case $line in
      Collecting\ *) number=$((number + 1)) ;;
      WARNING:\ Retrying\ *) echo "  no answer, trying again" >&2 ;;
      Installing\ collected\ packages*) echo "  installing (a minute or two)" >&2 ;;
      *) [[ ! $line =~ $download ]] || echo "  [$number/$all] downloading ${BASH_REMATCH[1]}" >&2 ;;
    esac
  done
}

pip_failure() {
  local reason
  reason=$(grep '^ERROR: ' "$1" | tail -n 1) || reason="it gave no reason"
  ! grep -q '^WARNING: Retrying' "$1" || reason="the package index does not answer: check the network"
  printf 'pip could not install requirements.txt (%s): see %s, then run the same command again' "$reason" "$1"
}

say() {
  printf 'set-up: %s\n' "$*" >&2
}

die() {
  say "$*"
  exit 1
}
