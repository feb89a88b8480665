"""The shell code that sets up the environment and starts Python, run with stand-ins for Python and pip."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import REPOSITORY

SCRIPTS = ("train.sh", "infer.sh", "eval.sh", "tests/run.sh", "ssd300_vgg16/launch.sh")
TOOLS = ["bash", "cat", "cp", "dirname", "env", "grep", "ls", "mkdir", "mv", "readlink", "rm", "sed", "sleep"]
TOOLS += ["sync", "tail", "tee", "uname"]

# Answers as python, pip and the package would, and notes the last line of every call.
FAKE_PYTHON = f"""#!{shutil.which("bash")}
printf '%s\\n' "$*" | tail -n 1 >>"$NOTES/calls"
case "$*" in
  *fcntl*) exec {shlex.quote(sys.executable)} "$@" ;;
  *ensurepip*) echo "$0" ;;
  *'-m venv'*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
  *'-m pip'*)
    cat >/dev/null
    echo 'Collecting oneflow==0.9.0'
    echo '  Downloading oneflow-0.9.0-cp310.whl (964.8 MB)'
    case ${{PIP_DOES:-}} in
      wait) until [[ -e $NOTES/go ]]; do sleep 0.02; done ;;
      fail) echo 'ERROR: No matching distribution found for oneflow==0.9.0' && exit 1 ;;
      offline) echo 'WARNING: Retrying (Retry(total=4))' && echo 'ERROR: No matching distribution' && exit 1 ;;
    esac ;;
  *)
    printf '%s\\0' "$PPID" "$PWD" "$PYTHONPATH" "$@" >"$NOTES/program"
    cat
    exit "${{PROGRAM_EXITS:-0}}" ;;
esac
"""


class Clone:
    """A copy of the scripts with a PATH that holds only what they may use and one stand-in for python3.10."""

    def __init__(self, folder: Path):
        self.root = folder / "a clone" / "ssd300_vgg16"
        self.bin = folder / "bin"
        self.notes = folder / "notes"
        self.venv = self.root / ".venv"
        for made in (self.bin, self.notes, folder / "home"):
            made.mkdir()
        for script in SCRIPTS:
            (self.root / script).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / script, self.root / script)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.command("stat", "#!/bin/sh\necho 9000000 1000\n")
        self.requirements("oneflow==0.9.0\n")
        (self.root / "requirements-dev.txt").write_text("pytest==9.2.0\n")
        self.python = self.command("python3.10", FAKE_PYTHON)
        self.started: list[subprocess.Popen] = []
        self.environment = {"PATH": str(self.bin), "NOTES": str(self.notes), "HOME": str(folder / "home")}

    def command(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def requirements(self, text: str) -> None:
        (self.root / "requirements.txt").write_text(text)

    def start(self, *arguments, script="train.sh", cwd=None, **variables) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", self.root / script if isinstance(script, str) else script, *arguments],
            cwd=cwd or self.root.parent,
            env=self.environment | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def kill(self, process: subprocess.Popen, killed_by: signal.Signals) -> None:
        os.killpg(process.pid, killed_by)
        process.communicate()

    def run(self, *arguments, stdin="", **options) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **options)
        output, errors = process.communicate(stdin, timeout=20)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def complaint(self, **options) -> str:
        """The one sentence of a start that fails before anything is installed."""
        result = self.run(**options)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert not (self.notes / "program").exists()
        return result.stderr

    def calls(self, part="") -> list[str]:
        log = self.notes / "calls"
        return [line for line in log.read_text().splitlines() if part in line] if log.exists() else []

    def installs(self) -> int:
        return len(self.calls(" install "))

    def started_as(self, module: str) -> list[str]:
        """The arguments by which Python runs a module of the package."""
        return ["-I", str(self.root / "ssd300_vgg16" / "start.py"), module]

    def program(self) -> list[str]:
        """Working directory, PYTHONPATH and arguments of the last program, which must have replaced its script."""
        parent, *rest = (self.notes / "program").read_text().split("\0")[:-1]
        assert parent == str(os.getpid())
        return rest


@pytest.fixture
def clone(tmp_path):
    made = Clone(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            made.kill(process, signal.SIGKILL)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("script", "module"),
    [("train.sh", "ssd300_vgg16.train"), ("infer.sh", "ssd300_vgg16.infer"), ("eval.sh", "ssd300_vgg16.evaluate")],
)
def test_first_use_passes_everything_through(clone, tmp_path, script, module):
    arguments = ["--data", "a b", "", "*", "$HOME", "-n", "a\nb", "it's", "\\"]
    result = clone.run(*arguments, script=script, cwd=tmp_path, stdin="piped in", PROGRAM_EXITS=7, PYTHONPATH="/mine")
    assert result.returncode == 7
    assert result.stdout == "piped in"
    assert "  [1/1] downloading oneflow-0.9.0-cp310.whl (964.8 MB)\n" in result.stderr
    assert clone.program() == [str(tmp_path), f"{clone.root}:/mine", *clone.started_as(module), *arguments]
    assert clone.installs() == 1


def test_later_uses_start_nothing_but_the_program(clone):
    clone.run()
    (path,) = (clone.venv / "lib/python3.10/site-packages/ssd300_vgg16.pth").read_text().splitlines()
    assert path == str(clone.root), "the environment's Python finds the package from anywhere"
    before = clone.calls()
    result = clone.run("again")
    assert clone.calls() == [*before, " ".join([*clone.started_as("ssd300_vgg16.train"), "again"])]
    assert result.stderr == ""


def test_called_by_relative_path_and_through_links(clone, tmp_path):
    (tmp_path / "script link").symlink_to(clone.root / "train.sh")
    (tmp_path / "clone link").symlink_to(clone.root)
    relative = os.path.relpath(clone.root / "train.sh", tmp_path)
    for number, script in enumerate((relative, "script link", "clone link/train.sh")):
        assert clone.run(str(number), script=Path(script), cwd=tmp_path).returncode == 0
        assert clone.program() == [str(tmp_path), str(clone.root), *clone.started_as("ssd300_vgg16.train"), str(number)]
    assert clone.installs() == 1


@pytest.fixture
def strewn(tmp_path):
    """A folder in which a user has files with names of libraries, and another copy of the package."""
    folder = tmp_path / "strewn"
    folder.mkdir()
    for name in ("signal", "queue", "yaml", "pickle", "socket", "re", "runpy", "cv2", "numpy"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the current folder was run')\n")
    other = folder / "ssd300_vgg16"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('another ssd300_vgg16 was run')\n")
    return folder


@pytest.fixture
def ready(tmp_path):
    """An environment that needs no set-up, with the Python that runs these tests."""
    venv = tmp_path / "ready"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    shutil.copy(REPOSITORY / "requirements.txt", venv / ".installed-requirements")
    return {**os.environ, "SSD_VENV": str(venv)}


def output_in(folder, command, environment) -> str:
    """What a command prints that is run in a folder, and that has to end well, without a word of complaint."""
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("script", ["train.sh", "infer.sh", "eval.sh"])
def test_files_of_the_current_folder_are_not_imported(strewn, ready, script):
    for path in ("", ":/nowhere"):  # the second has an empty part
        help_text = output_in(strewn, ["bash", REPOSITORY / script, "--help"], ready | {"PYTHONPATH": path})
        assert f"bash {script}" in help_text


# Says where the package lies, the value of a constant of the user's, and what the package's data workers answer.
WORKERS = """
import ssd300_vgg16
from constant_of_mine import VALUE
from ssd300_vgg16.data.workers import WorkerPool

if __name__ == "__main__":
    with WorkerPool(1) as pool:
        print(ssd300_vgg16.__path__[0], VALUE, *pool.map(abs, [-3, -4]))
"""


def test_nor_by_data_workers_and_the_users_path_is_kept(strewn, ready, tmp_path):
    """Workers begin as `python -c`, which would look in the current folder before it is told where to look."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "constant_of_mine.py").write_text("VALUE = 9\n")
    (mine / "starts_workers.py").write_text(WORKERS)
    command = ["bash", "-c", 'source "$0" && start starts_workers', REPOSITORY / "ssd300_vgg16" / "launch.sh"]
    printed = output_in(strewn, command, ready | {"PYTHONPATH": str(mine)})
    assert printed == f"{REPOSITORY / 'ssd300_vgg16'} 9 3 4\n"


@pytest.mark.parametrize("name", ["train", "infer", "evaluate", "export"])
def test_nor_by_installed_commands(strewn, ready, name):
    """-I stands for the scripts that pip writes: these search their own folder first, but the workers would not."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv[1:] = ['--help']\n"
    code += f"from ssd300_vgg16 import start; start.{name}()"
    printed = output_in(strewn, [sys.executable, "-I", "-c", code], ready | {"PYTHONPATH": ":/nowhere"})
    assert printed.startswith(("usage: ", "Train SSD300-VGG16"))


def test_tests_are_linted_then_run_in_the_root(clone, tmp_path):
    for _ in range(2):
        assert clone.run("-k", "a b", script="tests/run.sh", cwd=tmp_path, SSD_VENV="there").returncode == 0
    assert len(clone.calls("-r requirements-dev.txt")) == 1, "once"
    commands = ("-m ruff check", "-m ruff format", "-c ", "-m mypy --cache-dir=/dev/null", "-m pytest -W")
    of_kernels, calls = (
        [call for call in clone.calls()[-6:] if ("network.cpu" in call) == beside] for beside in (True, False)
    )
    for call, command in zip(calls, commands, strict=True):
        assert call.startswith(command)
    assert len(of_kernels) == 1 and "lint_imports" in calls[-3]
    directory, path, *arguments = clone.program()
    assert (directory, path, arguments[-2:]) == (str(clone.root), str(clone.root), ["-k", "a b"])
    assert (tmp_path / "there" / "bin" / "python").exists()
    assert not clone.venv.exists()


def test_all_tests_run_once_if_nothing_failed_before_them(clone):
    assert clone.run(script="tests/run.sh", PROGRAM_EXITS=3).returncode == 3
    assert len(clone.calls("-m ruff")) == 1
    assert clone.calls("-m pytest") == []
    assert clone.run(script="tests/run.sh").returncode == 0
    (call,) = clone.calls("-m pytest")
    assert call.endswith("-n 2 --dist loadfile --no-loadscope-reorder")


def test_changed_requirements_are_installed_over_what_is_there(clone):
    clone.requirements("oneflow==0.9.0\n# a comment\nonnx==1.17.0\n")
    clone.run()
    clone.requirements("oneflow==0.9.0\nsix==1.17.0\n")
    clone.run()
    clone.run()
    assert clone.installs() == 2
    assert len(clone.calls("-m venv")) == 1
    assert len(clone.calls(" uninstall ")) == 1
    assert (clone.venv / "changed-requirements.txt").read_text() == "onnx==1.17.0\n"


def install_by_hand(clone, version: str) -> Path:
    """What pip leaves when the user installs another build of OneFlow in the environment."""
    made = clone.venv / f"lib/python3.10/site-packages/oneflow-{version}.dist-info"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("version", ["0.9.1.dev20240203+cu121", "1.0.0"])
def test_an_oneflow_of_the_users_stays_when_requirements_change(clone, version):
    clone.requirements("oneflow==0.9.0\nnvidia-cudnn-cu11==8.9.6.50  # cuDNN\nonnx==1.17.0\n")
    clone.run()
    assert (clone.venv / "wanted-requirements.txt").read_text().count("==") == 3
    build = install_by_hand(clone, version)
    clone.requirements("oneflow==0.9.0\nnvidia-cudnn-cu11==8.9.7.29\nsix==1.17.0\n")
    for fault, status in (("offline", 1), ("", 0)):
        result = clone.run(PIP_DOES=fault)
        assert result.returncode == status
        assert f"leaving OneFlow {version} as it is" in result.stderr
        assert (clone.venv / "wanted-requirements.txt").read_text() == "six==1.17.0\n"
        assert (clone.venv / "changed-requirements.txt").read_text() == "onnx==1.17.0\n"
        assert build.exists(), "nor is the environment made anew after a failure"
    assert clone.installs() == 2
    assert len(clone.calls("-m venv")) == 1
    assert clone.run().stderr == ""


def test_an_oneflow_of_requirements_changes_with_them(clone):
    clone.run()
    install_by_hand(clone, "0.9.0")
    clone.requirements("oneflow==0.9.1\n")
    assert "leaving" not in clone.run().stderr
    assert (clone.venv / "wanted-requirements.txt").read_text() == "oneflow==0.9.1\n"
    assert (clone.venv / "changed-requirements.txt").read_text() == "oneflow==0.9.0\n"


def test_an_environment_whose_python_is_gone_is_made_anew(clone):
    clone.run()
    (clone.venv / "bin" / "python").unlink()
    assert clone.run().returncode == 0
    assert len(clone.calls("-m venv")) == clone.installs() == 2


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("changed", [False, True], ids=["first set-up", "change of requirements"])
def test_an_interrupted_set_up_is_done_over(clone, killed_by, changed):
    if changed:
        clone.run()
        clone.requirements("oneflow==0.9.1\n")
    process = clone.start(PIP_DOES="wait")
    wait_until(lambda: clone.installs() + len(clone.calls(" uninstall ")) == 1 + changed)
    clone.kill(process, killed_by)
    assert process.returncode != 0
    half_made = clone.venv / "half-made"
    half_made.touch()
    assert clone.run().returncode == 0
    assert len(clone.calls("-m venv")) == 2
    assert not half_made.exists()


@pytest.mark.parametrize(
    ("script", "install"), [("train.sh", " install "), ("tests/run.sh", "-r requirements-dev.txt")]
)
def test_two_at_once_install_once(clone, script, install):
    if script == "tests/run.sh":
        clone.run()
    first = clone.start("first", script=script, PIP_DOES="wait")
    wait_until(lambda: clone.calls(install))
    second = clone.start("second", script=script)
    assert "waiting for another set-up" in second.stderr.readline()
    (clone.notes / "go").touch()
    for process in (first, second):
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert len(clone.calls(install)) == 1
    started = [word for call in clone.calls() for word in call.split() if word in ("first", "second")]
    assert sorted(started) == ["first", "second"]


@pytest.mark.parametrize(
    ("output", "reason"),
    [("fail", "No matching distribution found for oneflow==0.9.0"), ("offline", "check the network")],
)
def test_a_failure_of_pip_names_its_log(clone, output, reason):
    result = clone.run(PIP_DOES=output)
    sentence = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert reason in sentence and f"{clone.venv}/set-up.log" in sentence
    assert "ERROR" in (clone.venv / "set-up.log").read_text()
    assert not (clone.notes / "program").exists()
    assert clone.run().returncode == 0


PLACES = ["bin/chosen python", "bin/python3", "home/.pyenv/versions/3.10.13/bin/python", "from uv/python"]


@pytest.mark.parametrize("place", PLACES)
def test_a_python_is_looked_for_where_it_may_be(clone, tmp_path, place):
    """The first of those that are looked at does not start, as pyenv's shims may."""
    python = tmp_path / place
    python.parent.mkdir(parents=True, exist_ok=True)
    clone.python.rename(python)
    clone.command("python3.10", "#!/bin/sh\necho 'pyenv: python3.10: command not found' >&2\nexit 127\n")
    if place == PLACES[3]:
        clone.command("uv", f'#!/bin/sh\n[ "$2" = find ] && echo "{python}"\n')
    assert clone.run(**{"PYTHON": python} if place == PLACES[0] else {}).returncode == 0
    assert clone.installs() == 1


@pytest.mark.parametrize("chosen", ["/no/such/python", "other"])
def test_an_unsuitable_python_variable_is_refused(clone, chosen):
    clone.command("other", "#!/bin/sh\necho it is CPython 3.12.1 >&2\nexit 1\n")
    reason = "it is CPython 3.12.1" if chosen == "other" else "there is no such command"
    assert f"PYTHON={chosen} is of no use here ({reason})" in clone.complaint(PYTHON=chosen)


def test_no_python_is_said_with_what_to_install(clone):
    clone.command("python3.10", "#!/bin/sh\necho 'its ensurepip is missing: apt-get install it' >&2\nexit 1\n")
    assert "(python3.10 starts, but its ensurepip is missing: apt-get install it)" in clone.complaint()
    (clone.bin / "python3.10").unlink()
    assert "no usable Python 3.10 was found: install it" in clone.complaint()


@pytest.mark.parametrize(
    ("tool", "answer", "words"),
    [
        ("stat", "1000000 1000", "8500 MB of disk space and 1000 MB are free"),
        ("uname", "Darwin arm64", "this is Darwin arm64"),
    ],
)
def test_a_machine_that_will_not_do_is_said(clone, tool, answer, words):
    clone.command(tool, f"#!/bin/sh\necho {answer}\n")
    assert words in clone.complaint()


def test_a_folder_that_cannot_be_written_is_said(clone):
    assert "set SSD_VENV to a folder that you can write to" in clone.complaint(SSD_VENV="/proc/venv")


def test_a_folder_of_someone_else_is_left_alone(clone, tmp_path):
    letters = tmp_path / "home" / "letters"
    letters.touch()
    assert "not made by this script" in clone.complaint(SSD_VENV=letters.parent)
    assert list(letters.parent.iterdir()) == [letters]


def test_the_python_of_these_tests_is_found_suitable():
    """The inspection itself, with the Python that runs the tests, as no stand-in runs it."""
    command = 'source "$0" && real_python "$1"'
    launch = REPOSITORY / "ssd300_vgg16" / "launch.sh"
    answer = subprocess.check_output(["bash", "-c", command, launch, sys.executable], text=True)
    assert answer.strip() == os.path.realpath(sys.executable)
