"""Colours that are derived from a text: the same on every machine."""

from __future__ import annotations

import colorsys

# Steps by the golden ratio never repeat a hue, and keep neighbours far apart.
_TURN = 0.618034
_NEARBY = 0.11  # a mix of distant hues would be grey


def scene_colours(digest: bytes, index: int) -> tuple[str, str]:
    """Return a dark background and a bright accent as "#rrggbb".

    `digest`, any hash of at least two bytes, picks the first hue; each `index` has its own.
    """
    hue = int.from_bytes(digest[:2], "big") / 65536 + index * _TURN
    return _hex(hue, 0.62, 0.30), _hex(hue + _NEARBY, 0.48, 0.98)


def _hex(hue: float, saturation: float, value: float) -> str:
    channels = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in channels)
