"""Stage report: what it says of the machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nelf.pipeline.stages import report

OLD = {"_is_avx2_supported": True, "_is_avx512_supported": False, "_is_vnni_supported": False}
NEW = dict.fromkeys(OLD, True)


@pytest.mark.parametrize(
    ("machine", "cpu", "listed", "bfloat16", "words"),
    [
        ("x86_64", OLD, {}, False, "AVX2, no AVX-512, no VNNI, no bfloat16"),
        ("AMD64", OLD, {"avx_vnni": True}, False, "AVX2, no AVX-512, VNNI, no bfloat16"),
        ("x86_64", NEW, {"avx_vnni": False}, True, "AVX2, AVX-512, VNNI, bfloat16"),
        ("x86_64", NEW, None, True, "AVX2, AVX-512, VNNI, bfloat16"),  # a PyTorch that does not list them
        ("aarch64", dict.fromkeys(OLD, False), {}, True, "bfloat16"),
    ],
)
def test_the_processors_instructions_are_named(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpu: dict, listed: dict | None, bfloat16: bool, words: str
) -> None:
    functions = {name: lambda has=has: has for name, has in cpu.items()}
    if listed is not None:
        functions["get_capabilities"] = lambda: listed
    monkeypatch.setattr(report.torch, "cpu", SimpleNamespace(**functions))
    monkeypatch.setattr(report.platform, "machine", lambda: machine)
    monkeypatch.setattr(report, "multiplies_bfloat16", lambda device: bfloat16)
    assert report._instructions() == words


def test_this_processor_has_some() -> None:
    assert "bfloat16" in report._instructions()
    assert torch.cpu._is_avx2_supported() == ("AVX2" in report._instructions().split(", "))
