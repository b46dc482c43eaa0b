"""Which device a process computes on, without one at hand."""

from typing import Any

import pytest
import torch

from segpt.errors import TrainError
from segpt.train import mesh
from segpt.train.mesh import join, pick


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with four CUDA devices, as far as torch says; lists those made the current one."""
    current: list[torch.device] = []
    empty = torch.empty

    def allocate(*shape: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return empty(*shape, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", allocate)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return current


def test_a_numbered_device_is_that_device(cuda: list[torch.device]) -> None:
    assert join("cuda:2").device == torch.device("cuda", 2)
    assert pick("cuda:3") == "cuda:3"
    assert cuda == [torch.device("cuda", 2), torch.device("cuda", 3)]  # what has no name for it


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_without_a_number_it_is_the_first(cuda: list[torch.device], device: str) -> None:
    assert join(device).device == torch.device("cuda", 0)
    assert pick(device) == "cuda"


def test_one_process_of_torchrun_may_name_a_device(
    cuda: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert join("cuda:2").device == torch.device("cuda", 2)


def several(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    for name, value in {"RANK": local, "WORLD_SIZE": 8, "LOCAL_RANK": local}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(mesh.Mesh, "agree", lambda *_: None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_several_processes_each_take_their_own(
    cuda: list[torch.device], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    several(monkeypatch, local=3)
    assert join(device).device == torch.device("cuda", 3)


def test_several_processes_do_not_share_one_device(
    cuda: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    several(monkeypatch, local=1)
    with pytest.raises(TrainError, match=r"cuda:2 is one device, and 8 processes.*--device cuda,"):
        join("cuda:2")
    several(monkeypatch, local=4)
    with pytest.raises(TrainError, match=r"process 4 on this machine.*there are 4 CUDA devices"):
        join("cuda")


@pytest.mark.parametrize("take", [join, pick])
def test_a_device_beyond_the_last_says_how_many_there_are(
    cuda: list[torch.device], take: Any
) -> None:
    with pytest.raises(TrainError, match=r"'cuda:9' is not there: there are 4 .*cuda:0 to cuda:3"):
        take("cuda:9")


@pytest.mark.parametrize(
    "device",
    ["mps", "xpu", "gpu", "cuda:x", "cuda:-1", "cuda:", "cuda:\u0663", "CUDA", "meta", "", "cpu:0"],
)
@pytest.mark.parametrize("take", [join, pick])
def test_other_devices_are_refused_without_a_list_of_torch(take: Any, device: str) -> None:
    with pytest.raises(TrainError) as refused:
        take(device)
    message = str(refused.value)
    assert "give auto, cpu, cuda, or cuda:N" in message
    assert len(message) < 150
    assert "ipu" not in message


def test_without_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(TrainError, match="finds no CUDA device here; give --device cpu"):
            pick(device)
    assert pick("auto") == pick("cpu") == "cpu"
