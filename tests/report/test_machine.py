"""What figures say of the machine that they were measured on, and what ``python -m nelf`` prints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nelf import __main__
from nelf.kernels import IMPLEMENTATIONS
from nelf.report import machine

OLD = {"_is_avx2_supported": True, "_is_avx512_supported": False, "_is_vnni_supported": False}
NEW = dict.fromkeys(OLD, True)


@pytest.mark.parametrize(
    ("name", "cpu", "listed", "bfloat16", "words"),
    [
        ("x86_64", OLD, {}, False, "AVX2, no AVX-512, no VNNI, no bfloat16"),
        ("AMD64", OLD, {"avx_vnni": True}, False, "AVX2, no AVX-512, VNNI, no bfloat16"),
        ("x86_64", NEW, {"avx_vnni": False}, True, "AVX2, AVX-512, VNNI, bfloat16"),
        ("x86_64", NEW, None, True, "AVX2, AVX-512, VNNI, bfloat16"),  # a PyTorch that does not list them
        ("aarch64", dict.fromkeys(OLD, False), {}, True, "bfloat16"),
    ],
)
def test_the_processors_instructions_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, cpu: dict, listed: dict | None, bfloat16: bool, words: str
) -> None:
    functions = {name: lambda has=has: has for name, has in cpu.items()}
    if listed is not None:
        functions["get_capabilities"] = lambda: listed
    monkeypatch.setattr(machine.torch, "cpu", SimpleNamespace(**functions))
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device: bfloat16)
    assert machine._instructions() == words


def test_this_processor_has_some() -> None:
    assert "bfloat16" in machine._instructions()
    assert torch.cpu._is_avx2_supported() == ("AVX2" in machine._instructions().split(", "))


def test_what_is_found_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "find_spec", lambda name: None if name == "pycolmap" else object())
    __main__.main()
    lines = {line[:26].strip(): line[26:] for line in capsys.readouterr().out.splitlines()}
    assert {f"kernel {operation}" for operation in IMPLEMENTATIONS} < set(lines)
    assert lines["extra pycolmap"] == "not installed; for cameras of photographs: pip install 'nelf[colmap]'"
    assert lines["extra skimage"] == "found"
