"""Small colour profiles, made from published numbers, and the arithmetic that they stand for."""

from __future__ import annotations

import struct

import numpy

# Columns: XYZ of the red, green and blue primary, adapted to D50, as the profiles carry them.
SRGB = numpy.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = numpy.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657],
                          [-0.00105, 0.04189, 0.78407]])
PROPHOTO = numpy.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82521]])
D50 = (0.9642, 1.0, 0.8249)
PROPHOTO_GAMMA = 1.8


def decoded(values):
    """sRGB values in 0..1 -> linear light."""
    return numpy.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light):
    """Linear light -> sRGB values in 0..1."""
    return numpy.where(light <= 0.0031308, light * 12.92, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)


SRGB_CURVE = numpy.rint(decoded(numpy.linspace(0, 1, 1024)) * 65535).astype(">u2")


def matrix_profile(primaries, gamma=None):
    """An RGB profile with these primaries and this gamma (default: sRGB's curve)."""
    tags = {f"{channel}XYZ": xyz(primaries[:, column]) for column, channel in enumerate("rgb")}
    return profile(b"RGB ", b"XYZ ", tags | {f"{channel}TRC": curve(gamma) for channel in "rgb"})


def grey_profile(gamma):
    return profile(b"GRAY", b"XYZ ", {"kTRC": curve(gamma)})


def cmyk_profile(lab):
    """A CMYK profile. `lab(c, m, y, k)`: the CIE Lab colour of each corner (0 or 1 of each ink)."""
    identity = bytes(range(256))
    corners = [lab(*(number >> bit & 1 for bit in (3, 2, 1, 0))) for number in range(16)]
    table = b"".join(struct.pack("3B", round(light * 2.55), round(a + 128), round(b + 128))
                     for light, a, b in corners)
    unit = [65536, 0, 0, 0, 65536, 0, 0, 0, 65536]
    head = b"mft1" + bytes(4) + struct.pack("4B", 4, 3, 2, 0) + struct.pack(">9i", *unit)
    return profile(b"CMYK", b"Lab ", {"A2B0": head + identity * 4 + table + identity * 3}, kind=b"prtr")


def xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma):
    if gamma is None:
        return b"curv" + bytes(4) + struct.pack(">I", len(SRGB_CURVE)) + SRGB_CURVE.tobytes()
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def profile(space, connection, tags, kind=b"mntr"):
    text = b"a profile\0"
    tags = {"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
            "cprt": b"text" + bytes(4) + text, "wtpt": xyz(D50)} | tags
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += struct.pack(">4s2I", name.encode(), start + len(data), len(body))
        data += body
    size = start + len(data)
    light = struct.pack(">3i", *(round(value * 65536) for value in D50))
    header = (struct.pack(">I4sI", size, b"test", 0x02400000) + kind + space + connection
              + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + light)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
