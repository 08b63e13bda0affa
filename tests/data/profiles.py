"""Color profiles made for tests: matrix profiles of ICC version 2, as small as they can be."""

import struct

P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
SWAPPED = (SRGB[1], SRGB[2], SRGB[0])
"""Red is green, green is blue, blue is red: whoever leaves it out is far off."""


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    table = []
    for k in range(1024):
        v = k / 1023
        table.append(round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)))
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *table)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    head = head.ljust(68, b"\0") + _fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def matrix(primaries: tuple[tuple[float, float, float], ...], gamma: float | None = 2.2) -> bytes:
    """A profile of RGB; gamma None: the curve of sRGB."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)}
    for sign, color in zip(b"rgb", primaries, strict=True):
        tags[bytes([sign]) + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(*color)
        tags[bytes([sign]) + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", tags)


def grey(gamma: float) -> bytes:
    """A profile of grey."""
    white = b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)
    return _profile(b"GRAY", {b"wtpt": white, b"kTRC": _curve(gamma)})
