"""Which device is used, and what is said of GPUs and drivers that do not serve: with a stand-in for the driver."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_driver import make_driver
from small_data import environment, run

import ssd300_vgg16
from ssd300_vgg16 import devices, gpus
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpus import Gpu, GpuDriver

RELEASES = "https://github.com/siliconflow/oneflow_releases/releases"
BROKEN = {
    802: "start nvidia-fabricmanager",
    803: "of different versions: reboot, or reinstall the driver",
    804: "LD_LIBRARY_PATH",
    999: "see what `nvidia-smi` and `dmesg` say",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of the stand-in."""
    return make_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(library, monkeypatch):
    """driver("A:8.6,B:9.0") makes these the GPUs of this machine, for a OneFlow that is not imported yet."""
    load = gpus.ctypes.CDLL
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: load(str(library / name)))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv(gpus.VISIBLE, "to be restored")
    monkeypatch.delenv(gpus.VISIBLE)
    monkeypatch.setattr(gpus, "oneflow_version", lambda: "0.9.0")
    monkeypatch.setattr(ssd300_vgg16, "runtime", SimpleNamespace(cuda_problem=lambda: None), raising=False)
    monkeypatch.delitem(sys.modules, "oneflow", raising=False)
    monkeypatch.setattr(devices, "_shown", None)

    def with_gpus(names, visible=None, **variables):
        variables |= {"FAKE_CU_GPUS": names} | ({} if visible is None else {gpus.VISIBLE: visible})
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        _forget()

    yield with_gpus
    _forget()


def _forget():
    gpus.gpu_driver.cache_clear()
    devices._say_once.cache_clear()


def refusal(name, *rank):
    with pytest.raises(UserError) as caught:
        resolve_device(name, *rank)
    return str(caught.value)


@pytest.mark.parametrize("capability", [(6, 0), (6, 1), (6, 2), (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9)])
def test_gpus_that_the_wheel_has_code_for(capability):
    assert gpus.capability_problem("0.9.0", Gpu("GPU", capability)) is None


@pytest.mark.parametrize("capability", [(3, 5), (5, 2), (5, 3), (9, 0), (10, 0), (12, 0)])
def test_gpus_that_only_other_builds_have_code_for(capability):
    problem = gpus.capability_problem("0.9.0", Gpu("NVIDIA H100 PCIe", capability))
    gpu = "NVIDIA H100 PCIe (compute capability {}.{})".format(*capability)
    assert problem.startswith(f"this OneFlow (0.9.0) has no code for {gpu}: ")
    for words in (RELEASES, "CUDA 11.8 to 12.2", "--device cpu"):
        assert words in problem
    for version in ("0.9.1.dev20240203+cu122", "0.9.0+cu112", "1.0.0"):  # which are taken to fit their machine
        assert gpus.capability_problem(version, Gpu("GPU", capability)) is None


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:-1", "cuda:²", "CPU", "cpu:0", "", "cuda:0 "])
def test_devices_that_do_not_exist(name):
    assert refusal(name) == f"--device {name}: write cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_gpu(monkeypatch, name):
    monkeypatch.setattr(devices, "gpu_driver", GpuDriver)
    monkeypatch.setattr(gpus, "gpu_driver", GpuDriver)
    assert refusal(name) == f"--device {name}: no GPU with a working CUDA driver was found; use --device cpu"
    assert resolve_device(None) == resolve_device("cpu") == "cpu"


def test_the_first_gpu_needs_no_choice(driver):
    driver("A:8.0,B:8.6")
    asked = {None: "cuda", "cuda": "cuda", "cuda:0": "cuda:0", "cpu": "cpu"}
    assert {name: resolve_device(name) for name in asked} == asked
    assert gpus.VISIBLE not in os.environ


def test_the_driver_says_what_gpus_there_are(driver):
    driver("NVIDIA A100:8.0,NVIDIA H100:9.0")
    assert gpus.gpu_driver() == GpuDriver((Gpu("NVIDIA A100", (8, 0)), Gpu("NVIDIA H100", (9, 0))))
    driver("NVIDIA A100:8.0,NVIDIA H100:9.0", visible="1")
    assert gpus.gpu_driver() == GpuDriver((Gpu("NVIDIA H100", (9, 0)),))
    driver("")
    assert gpus.gpu_driver() == GpuDriver()


@pytest.mark.parametrize(
    ("visible", "asked", "chosen", "name"),
    [
        (None, "cuda:1", "1", "B"),
        (None, "cuda:2", "2", "C"),
        ("2,0", "cuda:1", "0", "A"),
        ("2, 1", "cuda:1", "1", "B"),
        ("1,2,0", "cuda:2", "0", "A"),
    ],
)
def test_another_gpu_is_the_only_one_that_cuda_sees(driver, visible, asked, chosen, name):
    driver("A:8.0,B:8.6,C:7.5", visible)
    assert resolve_device(asked) == "cuda"
    assert os.environ[gpus.VISIBLE] == chosen
    assert [gpu.name for gpu in gpus.gpu_driver().gpus] == [name]
    # Asked again, by one after the other of those who need to know.
    assert [resolve_device(again) for again in (asked, "cuda", None)] == ["cuda"] * 3
    assert os.environ[gpus.VISIBLE] == chosen
    assert refusal("cuda:0") == f"--device cuda:0: this process shows OneFlow {asked} only; take another process for it"


@pytest.mark.parametrize("visible", [None, "5,7"])
def test_a_choice_that_comes_too_late_is_refused_with_the_way_to_make_it(driver, monkeypatch, visible):
    names = ",".join(f"G{number}:8.6" for number in range(8))
    driver(names, visible)
    monkeypatch.setitem(sys.modules, "oneflow", None)
    instead = f"set CUDA_VISIBLE_DEVICES={'7' if visible else '1'} before the program starts, and take the device cuda"
    assert instead in refusal("cuda:1")
    assert os.environ.get(gpus.VISIBLE) == visible
    monkeypatch.delitem(sys.modules, "oneflow")
    monkeypatch.setattr(devices, "cuda_in_use", lambda: True)
    assert instead in refusal("cuda:1")
    assert resolve_device("cuda:0") == "cuda:0"


def test_cuda_is_in_use_once_the_driver_is_initialised(driver):
    driver("A:8.0")
    assert not gpus.cuda_in_use()
    gpus.ctypes.CDLL("libcuda.so.1").cuInit(0)
    assert gpus.cuda_in_use()


def test_gpus_that_cannot_be_used_are_refused(driver):
    driver("A100:8.0,H100:9.0")
    assert "this OneFlow (0.9.0) has no code for H100 (compute capability 9.0)" in refusal("cuda:1")
    assert refusal("cuda:2") == "--device cuda:2: this machine has GPUs 0 to 1"
    driver("A100:8.0,H100:9.0", visible="1")
    assert "has no code for H100" in refusal("cuda")
    assert os.environ[gpus.VISIBLE] == "1"


def test_a_gpu_without_code_is_not_the_default_which_is_said_once(driver, capsys):
    driver("H100:9.0")
    assert [resolve_device(None) for _ in range(2)] == ["cpu", "cpu"]
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.count("\n") == 1 and said.startswith("computing on the CPU: this OneFlow (0.9.0) has no code for H100")


def test_an_oneflow_that_finds_no_gpu_is_said(driver, monkeypatch):
    driver("A:8.0")
    monkeypatch.setattr(ssd300_vgg16, "runtime", SimpleNamespace(cuda_problem=lambda: "it is for the CPU"))
    assert refusal("cuda") == "--device cuda: it is for the CPU"
    assert resolve_device(None) == "cpu"


@pytest.mark.parametrize("status", BROKEN)
def test_a_broken_driver_is_named_with_its_cure(driver, capsys, status):
    driver("A:8.0", FAKE_CU_INIT=str(status))
    for name in ("cuda", "cuda:0", "cuda:1"):
        said = refusal(name)
        assert said.startswith(f"--device {name}: the GPU driver does not work (CUDA error {status}): ")
        assert BROKEN[status] in said
    assert resolve_device("cpu") == resolve_device(None) == "cpu"
    assert capsys.readouterr().err.startswith("computing on the CPU: the GPU driver does not work")


def test_a_driver_that_crashes_or_hangs_is_named(driver, monkeypatch):
    driver("A:8.0", FAKE_CU_CRASH="1")
    assert "the GPU driver ended the process that asked it (-6): see what" in refusal("cuda")
    monkeypatch.delenv("FAKE_CU_CRASH")
    monkeypatch.setattr(gpus, "DRIVER_SECONDS", 0.2)
    driver("A:8.0", FAKE_CU_HANG="1")
    assert "the GPU driver has not answered for 0.2 s: see what" in refusal("cuda")


def test_several_processes_take_a_gpu_each(driver, monkeypatch):
    driver("A:8.0,B:8.6")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.local_rank() == 1
    assert [resolve_device(name, rank) for name in (None, "cuda") for rank in (0, 1)] == ["cuda:0", "cuda:1"] * 2
    assert resolve_device("cuda:1") == "cuda:1", "the detector of an evaluation is given the resolved name"
    assert gpus.VISIBLE not in os.environ
    assert "several processes take GPUs 0, 1, ... in turn: write cuda" in refusal("cuda:0", 0)
    assert "not every process of this machine has a GPU of its own: each is shown 2. NPROC" in refusal("cuda", 2)
    driver("")
    assert [resolve_device(None, rank) for rank in (0, 5)] == ["cpu", "cpu"]
    assert refusal("cuda", 5) == "--device cuda:5: no GPU with a working CUDA driver was found; use --device cpu"


@pytest.fixture
def machine(library):
    """The environment of a process on a machine with these GPUs."""
    return {"LD_LIBRARY_PATH": str(library), "FAKE_CU_GPUS": "A:8.0,H:9.0"}


def test_commands_refuse_before_data_and_weights_are_looked_for(machine, tmp_path):
    for module, arguments in (
        ("train", ("--data-path", "none")),
        ("evaluate", ("--data-path", "none", "--weights", "none")),
    ):
        process = run(module, *arguments, "--device", "cuda:1", folder=tmp_path, variables=machine)
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr.count("\n") == 1
        assert "--device cuda:1: this OneFlow (0.9.0) has no code for H (compute capability 9.0)" in process.stderr


def test_oneflow_is_shown_no_gpu_where_the_driver_is_broken(machine):
    """Else its import would end the process."""
    code = (
        "from ssd300_vgg16.runtime.__main__ import report; import os\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], report())"
    )
    broken = environment() | machine | {"FAKE_CU_INIT": "803", "FAKE_CU_HIDES": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=broken, capture_output=True, text=True, timeout=100)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("-1 ")
    assert "driver    the GPU driver does not work (CUDA error 803): " in process.stdout
    assert "device    cpu " in process.stdout


def test_a_broken_driver_that_cannot_be_hidden_is_said(machine, tmp_path):
    process = run("export", "none", "--to", "x.onnx", folder=tmp_path, variables=machine | {"FAKE_CU_INIT": "999"})
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "the GPU driver does not work (CUDA error 999)" in process.stderr
    assert "OneFlow cannot start beside it, for the CPU neither" in process.stderr
