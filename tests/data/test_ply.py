"""Points of PLY files that are packed here by the format's description."""

import struct

import numpy as np
import pytest

from nelf.data.ply import read_ply
from nelf.errors import UserError

POINTS = [(0.5, -1.25, 3.0), (1e-3, 2.0, -7.5), (4.0, 5.0, 6.0)]


def ascii_file(path, points=POINTS, count=None, end="\n"):
    """As nerfstudio writes them, with a color of one byte each."""
    lines = ["ply", "format ascii 1.0", "comment made by hand", f"element vertex {count or len(points)}"]
    lines += [f"property float {axis}" for axis in "xyz"] + [f"property uint8 {c}" for c in ("red", "green", "blue")]
    body = "\n".join(f"{x:8f} {y:8f} {z:8f} 1 2 3" for x, y, z in points)
    path.write_text("\n".join([*lines, "end_header", ""]) + body + end)
    return path


def binary_file(path, order="little", keep=None):
    """Doubles, not in the order x y z, beside a normal and before faces."""
    kinds = ["uchar flag", "double z", "double x", "float nx", "double y"]
    lines = [f"ply\nformat binary_{order}_endian 1.0\nobj_info none\nelement vertex {len(POINTS)}"]
    lines += [f"property {kind}" for kind in kinds]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header\n"]
    mark = {"little": "<", "big": ">"}[order]
    body = b"".join(struct.pack(f"{mark}Bddfd", 9, z, x, 0.0, y) for x, y, z in POINTS)
    body = body if keep is None else body[:keep]
    path.write_bytes("\n".join(lines).encode() + body + (b"" if keep else struct.pack(f"{mark}Biii", 3, 0, 1, 2)))
    return path


@pytest.mark.parametrize("order", ["little", "big"])
def test_binary(tmp_path, order) -> None:
    assert read_ply(binary_file(tmp_path / "p.ply", order)).tolist() == [list(point) for point in POINTS]


@pytest.mark.parametrize("end", ["\n", "", "\n3 0 1 2\n"])
def test_ascii(tmp_path, end) -> None:
    np.testing.assert_allclose(read_ply(ascii_file(tmp_path / "p.ply", end=end)), POINTS, atol=1e-6)


def header(*lines):
    return "\n".join(["ply", "format ascii 1.0", *lines, "end_header", "1 2 3", ""]).encode()


XYZ = ["property float x", "property float y", "property float z"]
BAD = {
    "no PLY": (b"solid cube\n", "does not begin with 'ply'"),
    "nothing": (b"", "does not begin with 'ply'"),
    "no end": (b"ply\nformat ascii 1.0\n", "no 'end_header'"),
    "another format": (b"ply\nformat packed 1.0\nend_header\n", "allowed: ascii, binary_little_endian"),
    "no element": (header(), "first element is none; allowed: vertex"),
    "faces first": (header("element face 1", "property list uchar int i"), "first element is face 1; allowed: vertex"),
    "a list": (header("element vertex 1", *XYZ, "property list uchar int i"), "'property list uchar int i'; allowed"),
    "x twice": (header("element vertex 1", *XYZ, XYZ[0]), "'property float x'; allowed"),
    "no z": (header("element vertex 1", *XYZ[:2]), "vertices have x, y; allowed: with x, y and z"),
    "no points": (header("element vertex 0", *XYZ), "has no points"),
    "a negative count": (header("element vertex -1", *XYZ), "first element is vertex -1"),
    "too few": (header("element vertex 2", *XYZ), r"is cut off"),
    "far too few": (header("element vertex 99999999999999", *XYZ), "is cut off, 99999999999999 vertices take more"),
    "words": (header("element vertex 1", *XYZ).replace(b"2", b"two"), "a vertex is no numbers"),
    "NaN": (header("element vertex 1", *XYZ).replace(b"2", b"nan"), "NaN, infinity or numbers beyond"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_such_file_is_refused(tmp_path, case) -> None:
    content, message = BAD[case]
    (tmp_path / "p.ply").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_ply(tmp_path / "p.ply")
    assert "\n" not in str(caught.value)
    assert "p.ply" in str(caught.value)


@pytest.mark.parametrize("keep", [1, 36, 86])
def test_a_binary_file_that_is_cut_off(tmp_path, keep) -> None:
    with pytest.raises(UserError, match=f"is cut off, 3 vertices take more than its {keep} bytes"):
        read_ply(binary_file(tmp_path / "p.ply", keep=keep))


def test_a_missing_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"none\.ply: no such file"):
        read_ply(tmp_path / "none.ply")
