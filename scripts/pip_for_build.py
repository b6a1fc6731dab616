"""Hand this host's way to its package index on to an image build, without writing it into the image.

``python3 scripts/pip_for_build.py FOLDER`` writes ``FOLDER/pip.conf``, to be the build secret ``pip``, and prints a line
``--volume=<here>:<there>:ro`` for each file or folder of this host that pip's settings name, for ``buildah bud`` or ``podman build``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

REACH = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "cert",
    "client-cert",
    "timeout",
    "default-timeout",
)
INDEXES = ("index-url", "extra-index-url")
INSIDE = Path("/run/host")


def settings(listed: str) -> dict[str, list[str]]:
    """What ``pip config list`` says about reaching an index: its words by key; variables of the environment win over files."""
    found: dict[str, list[str]] = {}
    lines = [line for line in listed.splitlines() if "=" in line]
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2].replace("_", "-").removeprefix("default-")
        if key in REACH:
            found[key] = str(ast.literal_eval(value)).split()
    return found


def moved(found: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[Path, Path]]:
    """The settings with this host's paths replaced by those inside the build, and where each path goes.

    The files of an index in a folder often lie beside it, so the folder above comes along.
    """
    places: dict[Path, Path] = {}

    def move(key: str, word: str) -> str:
        path = Path(word.removeprefix("file://"))
        if not path.is_absolute() or not path.exists():
            return word
        home = path.parent if key in INDEXES else path
        there = places.setdefault(home, INSIDE / str(len(places)))
        return word.replace(str(home), str(there), 1)

    return {key: [move(key, word) for word in words] for key, words in found.items()}, places


def conf(found: dict[str, list[str]]) -> str:
    """The text of a ``pip.conf``."""
    return "\n".join(["[global]", *(f"{key} = " + "\n    ".join(words) for key, words in found.items())]) + "\n"


def main(folder: Path) -> None:
    """Write the file, print the volumes."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    found, places = moved(settings(listed))
    (folder / "pip.conf").write_text(conf(found))
    for here, there in places.items():
        sys.stdout.write(f"--volume={here}:{there}:ro\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
