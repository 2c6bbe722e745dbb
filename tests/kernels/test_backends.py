"""Which backend an operation gets, what is said where one cannot run, and tinycudann behind the common signature.

There is no GPU here: devices are named, and a stand-in takes the place of tinycudann, written from its documentation
(``DOCUMENTATION.md`` and ``bindings/torch`` of NVlabs/tiny-cuda-nn): ``Encoding(n_input_dims, encoding_config, seed,
dtype)``, a module with all numbers in ``params``, level after level; ``Network(n_input_dims, n_output_dims,
network_config, seed)``, whose ``params`` are its matrices, row-major, the last one with a multiple of 16 rows.
"""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nelf.errors import UserError
from nelf.interop import ngp_pl
from nelf.kernels import HashGrid, gpu, implementation, reference, tcnn_field

GPU = torch.device("cuda", 0)
GRID = HashGrid(levels=4, features=2, log2_table=8, base_resolution=4, per_level_scale=1.5)  # dense and hashed levels


class Encoding(nn.Module):
    """Stands in for ``tinycudann.Encoding``, for a grid in three dimensions."""

    made = 0

    def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype | None = None):
        super().__init__()
        Encoding.made += 1
        assert (n_input_dims, dtype) == (3, torch.float32)
        assert {name: encoding_config.pop(name) for name in ("otype", "type", "interpolation")} == {
            "otype": "Grid",
            "type": "Hash",
            "interpolation": "Linear",
        }
        self.levels, self.features = encoding_config.pop("n_levels"), encoding_config.pop("n_features_per_level")
        largest = 2 ** encoding_config.pop("log2_hashmap_size")
        growth = np.log2(np.float32(encoding_config.pop("per_level_scale")))
        base = np.float32(encoding_config.pop("base_resolution"))
        assert not encoding_config
        self.scales = [float(np.exp2(np.float32(n) * growth) * base - 1) for n in range(self.levels)]
        self.sides = [int(np.ceil(scale)) + 1 for scale in self.scales]
        self.sizes = [min(-(-(side**3) // 8) * 8, largest) for side in self.sides]
        self.params = nn.Parameter(torch.full((sum(self.sizes) * self.features,), 7.0))

    def forward(self, x: Tensor) -> Tensor:
        out, start = [], 0
        for scale, side, size in zip(self.scales, self.sides, self.sizes, strict=True):
            table = self.params[start * self.features : (start + size) * self.features].view(size, self.features)
            at = x * scale + 0.5
            low = at.detach().floor()
            total = torch.zeros(len(x), self.features)
            for corner in np.ndindex(2, 2, 2):
                i, j, k = (low[:, axis].long() + corner[axis] for axis in range(3))
                hashed = i ^ (j * 2654435761 % 2**32) ^ (k * 805459861 % 2**32)
                entry = (hashed if side**3 > size else i + side * (j + side * k)) % size
                share = torch.where(torch.tensor(corner) > 0, at - low, 1 - (at - low)).prod(-1)
                total = total + share[:, None] * table[entry]
            out.append(total)
            start += size
        return torch.cat(out, 1)


class Network(nn.Module):
    """Stands in for ``tinycudann.Network``, fully fused, which computes and answers in half precision."""

    made = 0

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict, seed: int = 1337):
        super().__init__()
        Network.made += 1
        assert network_config.pop("otype") == "FullyFusedMLP"
        assert (network_config.pop("activation"), network_config.pop("output_activation")) == ("ReLU", "None")
        width, layers = network_config.pop("n_neurons"), network_config.pop("n_hidden_layers")
        assert not network_config
        assert width in (16, 32, 64, 128)
        assert n_input_dims % 16 == 0  # else it would append ones
        self.outputs, self.rows = n_output_dims, -(-n_output_dims // 16) * 16
        self.shapes = [(width, n_input_dims), *[(width, width)] * (layers - 1), (self.rows, width)]
        self.params = nn.Parameter(torch.full((sum(a * b for a, b in self.shapes),), 7.0))

    def forward(self, x: Tensor) -> Tensor:
        start, x = 0, x.half()
        for layer, (rows, columns) in enumerate(self.shapes):
            matrix = self.params[start : start + rows * columns].view(rows, columns).half()
            x = (x.relu() if layer else x) @ matrix.T
            start += rows * columns
        return x[:, : self.outputs]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tinycudann")
    module.__spec__ = ModuleSpec("tinycudann", None)
    module.Encoding, module.Network = Encoding, Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    forget()
    yield
    forget()


def forget() -> None:
    for function in (gpu._runs, gpu._not_installed, gpu._obstacle, tcnn_field._encoding, tcnn_field._network):
        function.cache_clear()


@pytest.mark.usefixtures("stand_in")
def test_a_table_takes_the_place_of_tinycudanns_parameters() -> None:
    made, results = Encoding.made, []
    grad = torch.randn(50, 8)
    for run in (reference.hash_encode, tcnn_field.hash_encode, tcnn_field.hash_encode):
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(50, 3, generator=generator).requires_grad_()
        table = torch.randn(GRID.entries, 2, generator=generator).requires_grad_()
        out = run(points, table, GRID)
        out.backward(grad)
        results.append((out.detach(), points.grad, table.grad))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=1e-5)
    assert Encoding.made == made + 1  # one for a grid, whatever the table
    assert tcnn_field._encoding(GRID, torch.device("cpu")).params.numel() == 0  # and no numbers of its own


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("sides", [(32, 64, 16), (32, 64, 64, 3), (48, 16, 16, 16, 16, 20)])
def test_weights_take_the_place_of_tinycudanns_parameters(sides: tuple[int, ...]) -> None:
    made, results = Network.made, []
    grad = torch.randn(50, sides[-1])
    for run in (reference.mlp, tcnn_field.mlp, tcnn_field.mlp):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(50, sides[0], generator=generator).requires_grad_()
        shapes = zip(sides[1:], sides, strict=False)
        weights = [(torch.randn(shape, generator=generator) / shape[1] ** 0.5).requires_grad_() for shape in shapes]
        out = run(inputs, weights)
        out.backward(grad.to(out.dtype))
        results.append([out.detach(), inputs.grad, *(each.grad for each in weights)])
    assert [each[0].dtype for each in results] == [torch.bfloat16, torch.float16, torch.float16]
    for expected, *others in zip(*results, strict=True):
        for got in others:
            assert float((got.float() - expected.float()).norm()) < 0.1 * float(expected.float().norm())
    assert Network.made == made + 1
    assert tcnn_field._network(sides, torch.device("cpu")).params.numel() == 0


def test_networks_are_read_back_from_what_tinycudann_is_given() -> None:
    """By the reader of ngp_pl's checkpoints, whose networks tiny-cuda-nn has written."""
    weights = [torch.randn(64, 32), torch.randn(64, 64), torch.randn(3, 64)]
    found = ngp_pl._matrices("color_net", tcnn_field.flattened(weights), ngp_pl._COLOR, 3)
    for expected, got in zip(weights, found.values(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("sides", [(20, 64, 3), (32, 48, 3), (32, 64, 32, 3)])
def test_networks_that_tinycudann_does_not_have_are_passed_on(
    sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Network, "forward", None)
    monkeypatch.setenv("NELF_KERNELS", "reference")
    weights = [torch.zeros(shape) for shape in zip(sides[1:], sides, strict=False)]
    assert tcnn_field.mlp(torch.rand(4, sides[0]), weights).shape == (4, 3)


@pytest.mark.usefixtures("stand_in")
def test_what_tinycudann_does_not_do_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoding, "forward", None)
    monkeypatch.setenv("NELF_KERNELS", "reference")
    odd = HashGrid(levels=2, features=3, log2_table=8, base_resolution=4, per_level_scale=1.5)
    assert tcnn_field.hash_encode(torch.rand(4, 3), torch.zeros(odd.entries, 3), odd).shape == (4, 6)
    assert tcnn_field.hash_encode(torch.rand(0, 3), torch.zeros(GRID.entries, 2), GRID).shape == (0, 8)


@pytest.mark.usefixtures("stand_in")
def test_a_grid_that_is_numbered_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashGrid, "entries", 5)
    with pytest.raises(RuntimeError, match="parameters there, 10 here"):
        tcnn_field.hash_encode(torch.rand(4, 3), torch.zeros(5, 2), GRID)


@pytest.mark.usefixtures("interpreted")  # as importing the kernels of Triton decides on that
@pytest.mark.parametrize(
    ("forced", "run", "expected"),
    [
        ("", ["tcnn", "triton"], ["tcnn_field", "tcnn_field", "triton_rays", "triton_lookup"]),
        ("", ["triton"], ["triton_field", "triton_mlp", "triton_rays", "triton_lookup"]),
        ("", ["tcnn"], ["tcnn_field", "tcnn_field", "reference", "reference"]),
        ("", [], ["reference"] * 4),
        ("triton", ["tcnn", "triton"], ["triton_field", "triton_mlp", "triton_rays", "triton_lookup"]),
        ("tcnn", ["tcnn", "triton"], ["tcnn_field", "tcnn_field", "triton_rays", "triton_lookup"]),
        ("reference", ["tcnn", "triton"], ["reference"] * 4),
    ],
)
def test_a_gpu_gets_the_fastest_that_runs(
    forced: str, run: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NELF_KERNELS", forced)
    forget()
    monkeypatch.setattr(gpu, "_obstacle", lambda backend, index: None if backend in run else "it does not")
    found = [implementation(name, GPU).__module__ for name in ("hash_encode", "mlp", "march", "ray_features")]
    gpu._runs.cache_clear()
    assert found == [f"nelf.kernels.{name}" for name in expected]


def test_a_build_for_another_gpu_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As tinycudann says it when it is imported."""
    (tmp_path / "tinycudann").mkdir()
    said = "Could not find compatible tinycudann extension for compute capability 90."
    (tmp_path / "tinycudann" / "__init__.py").write_text(f"raise EnvironmentError({said!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if name == "tinycudann" else None)
    monkeypatch.delenv("NELF_KERNELS", raising=False)
    forget()
    with caplog.at_level(logging.WARNING):
        assert [implementation("hash_encode", GPU) for _ in range(2)] == [reference.hash_encode] * 2
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    assert message.startswith(f"tinycudann does not run on NVIDIA H100: {said} It has to be built for this GPU and")
    assert "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch" in message
    monkeypatch.setenv("NELF_KERNELS", "tcnn")
    with pytest.raises(UserError, match="NELF_KERNELS=tcnn: tinycudann does not run on NVIDIA H100"):
        implementation("hash_encode", GPU)
    forget()


@pytest.mark.parametrize(
    ("forced", "device", "installed", "expected"),
    [
        (
            "tcnn",
            GPU,
            False,
            r"NELF_KERNELS=tcnn: tinycudann is not installed; it is compiled .*: pip install git\+https",
        ),
        ("triton", GPU, False, "NELF_KERNELS=triton: triton is not installed; PyTorch's CUDA wheels"),
        ("triton", torch.device("cpu"), True, "NELF_KERNELS=triton: the tensors are on cpu; it needs a CUDA device"),
        ("tcnn", torch.device("cpu"), True, "NELF_KERNELS=tcnn: the tensors are on cpu"),
        ("cpu", GPU, True, "NELF_KERNELS=cpu: the tensors are on cuda:0"),
        ("cuda", GPU, True, "'cuda' is not a kernel backend; allowed: reference, cpu, triton, tcnn"),
    ],
)
def test_what_is_asked_for_and_cannot_run_is_one_line(
    forced: str, device: torch.device, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget()
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if installed else None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("NELF_KERNELS", forced)
    with pytest.raises(UserError, match=expected):
        implementation("hash_encode", device)
    forget()


def test_a_processor_gets_numba_and_tracers_get_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NELF_KERNELS", raising=False)
    assert implementation("march", torch.device("cpu")).__module__ == "nelf.kernels.cpu_rays"
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert implementation("march", torch.device("cpu")) is reference.march
