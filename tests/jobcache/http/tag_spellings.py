"""Entity tags as proxies change them."""

from __future__ import annotations

SUFFIXES = ["-gzip", "--gzip", ";gzip", "-br", "-zstd", ";gz", "-GZIP", "-deflate", "-gzip-br"]


def spellings(tag: str) -> list[str]:
    """What becomes of a tag on its way to the client and back."""
    inside = [f"{tag[:-1]}{suffix}{tag[-1]}" for suffix in SUFFIXES]
    changed = [tag, *inside, *(tag + suffix for suffix in SUFFIXES)]
    return [*changed, *("W/" + each for each in changed), f"w/{tag}"]
