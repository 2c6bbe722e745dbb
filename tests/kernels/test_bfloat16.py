"""Where bfloat16 is multiplied natively, against what the operating system says of the processor."""

from pathlib import Path

import pytest
import torch

from nelf.kernels import multiplies_bfloat16

CPUINFO = Path("/proc/cpuinfo")


def test_a_processor_counts_only_with_the_instructions_of_bfloat16() -> None:
    flags = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
    if "avx2" not in flags:
        pytest.skip("needs Linux on x86")
    # An emulated processor has fewer than the operating system tells of.
    assert "avx512_bf16" in flags or not multiplies_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("avx2", "avx512_bf16", "onednn", "native"),
    [
        (True, True, True, True),  # EPYC from Zen 4 on, Xeon from Sapphire Rapids on
        (True, False, True, False),  # Ice Lake: oneDNN takes it and converts
        (True, False, False, False),  # AVX2 alone
        (False, False, True, True),  # Arm with bfloat16
        (False, False, False, False),
    ],
)
def test_conversion_alone_is_not_enough(
    monkeypatch: pytest.MonkeyPatch, avx2: bool, avx512_bf16: bool, onednn: bool, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert multiplies_bfloat16(torch.device("cpu")) == native
