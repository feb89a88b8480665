"""ONNX Runtime on a GPU, with a session in the place of one that needs a GPU."""

import numpy as np
import pytest
from small_data import untrained_run

from ssd300_vgg16 import Detector, devices, evaluate, infer
from ssd300_vgg16.deploy import model as deploy_model
from ssd300_vgg16.deploy import session
from ssd300_vgg16.deploy.session import CPU_PROVIDER, CUDA_PROVIDER, resolve_engine
from ssd300_vgg16.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return (untrained_run(tmp_path_factory.mktemp("cuda") / "run") / "best.safetensors").read_bytes()


@pytest.fixture
def weights(original, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(original)
    return path


@pytest.fixture
def gpu(monkeypatch):
    """What sessions on a GPU were asked for; they compute on the CPU, and say that they have `gpu.providers`."""

    class Sessions(list):
        providers = (CUDA_PROVIDER, CPU_PROVIDER)
        failure = None

    asked, really = Sessions(), session.onnxruntime.InferenceSession

    class OnGpu(really):
        def __init__(self, model, settings, providers, **options):
            self.on_gpu = providers != [CPU_PROVIDER]
            if self.on_gpu:
                asked.append((dict(providers[0][1]), options))
            super().__init__(model, settings, providers=[CPU_PROVIDER])

        def get_providers(self):
            return list(asked.providers) if self.on_gpu else super().get_providers()

        def run(self, *arguments):
            if asked.failure and self.on_gpu:
                assert not self._enable_fallback, "the CPU would take over"
                raise RuntimeError(asked.failure)
            return super().run(*arguments)

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", OnGpu)
    monkeypatch.setattr(session.onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(session.onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(session, "resolve_device", lambda *_: pytest.fail("OneFlow is not asked for the GPU"))
    return asked


def test_the_gpu_that_was_asked_for(weights, gpu):
    detector = Detector.load(weights, "cuda:2", engine="onnxruntime")
    assert detector.device == "cuda:2"
    ((settings, options),) = gpu
    assert settings == {"device_id": "2", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert options == {"enable_fallback": 0}
    assert len(detector(IMAGE)["scores"]) > 0


def test_several_processes_take_gpus_in_turn(gpu):
    assert resolve_engine("onnxruntime", "cuda", 3) == ("onnxruntime", "cuda:3")
    assert resolve_engine("auto", "cuda", 0, exported=True) == ("onnxruntime", "cuda:0")
    with pytest.raises(UserError, match=r"--device cuda:1: several processes take GPUs 0, 1, ... in turn: write cuda"):
        resolve_engine("onnxruntime", "cuda:1", 3)
    with pytest.raises(UserError, match="--device gpu: write cpu, cuda or cuda:N"):
        resolve_engine("onnxruntime", "gpu")


def test_a_provider_that_did_not_start_is_not_replaced_by_the_cpu(weights, gpu, kept_models):
    for kept in (False, True):
        gpu.providers = (CPU_PROVIDER,)
        assert bool(kept_models()) == kept
        with pytest.raises(UserError, match=r"--device cuda: ONNX Runtime .* cannot compute there \(it did not start"):
            Detector.load(weights, "cuda", engine="onnxruntime")
        gpu.providers = (CUDA_PROVIDER, CPU_PROVIDER)
        Detector.load(weights, "cuda", engine="onnxruntime")


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_file_that_is_no_model_is_not_put_down_to_the_gpu(gpu, tmp_path, content):
    (tmp_path / "w.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.onnx: not a whole ONNX model"):
        Detector.load(tmp_path / "w.onnx", "cuda")


def test_what_fails_while_it_computes_is_one_sentence(weights, gpu):
    detector = Detector.load(weights, "cuda", engine="onnxruntime")
    gpu.failure = "CUDA error\nno kernel image is available"
    with pytest.raises(
        UserError, match=r"--device cuda: .* cannot compute there \(CUDA error no kernel image is avail"
    ):
        detector(IMAGE)


def test_gpu_and_cpu_each_keep_a_model(weights, gpu, monkeypatch, kept_models):
    monkeypatch.setattr(session, "resolve_device", devices.resolve_device)
    made, load_model = [], deploy_model.load_model
    monkeypatch.setattr(deploy_model, "load_model", lambda path: made.append(path) or load_model(path))
    for _ in range(2):
        for device in ("cpu", "cuda", "cuda:1"):
            Detector.load(weights, device, engine="onnxruntime")
    assert len(made) == 2
    assert sorted(".cuda" in path.name for path in kept_models()) == [False, True]
    weights.write_bytes(weights.read_bytes())  # as it was: nothing new
    Detector.load(weights, "cuda", engine="onnxruntime")
    assert len(made) == 2


@pytest.mark.parametrize("command", [infer, evaluate])
def test_without_the_provider_nothing_is_read(command, tmp_path):
    (tmp_path / "a.jpg").touch()
    arguments = [str(tmp_path)] if command is infer else ["--data-path", str(tmp_path / "nothing")]
    options = ["--weights", str(tmp_path / "nothing"), "--engine", "onnxruntime", "--device", "cuda"]
    with pytest.raises(
        UserError, match=r"pip uninstall -y onnxruntime; .*pip install 'onnxruntime-gpu\[cuda,cudnn\]=="
    ):
        command.main([*arguments, *options])
