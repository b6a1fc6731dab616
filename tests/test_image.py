"""The image's recipe and what is handed to its build; `make image-test` builds it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
RECIPE = (PROJECT / "Dockerfile").read_text()
PROGRAM = PROJECT / "scripts" / "pip_for_build.py"


def steps() -> list[tuple[str, str]]:
    """Instructions with their arguments, comments dropped and continued lines joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", RECIPE, flags=re.M)).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def test_the_base_is_an_argument() -> None:
    assert [name for name, _ in steps()][:2] == ["ARG", "FROM"]
    assert steps()[0][1].startswith("BASE=") and steps()[1][1] == "${BASE}"


def test_the_label_says_the_version_of_the_project() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert ("ARG", f"VERSION={version}") in steps()


def test_the_last_word_on_the_user_is_not_root_and_nothing_is_written_after_it() -> None:
    names = [name for name, _ in steps()]
    user = [value for name, value in steps() if name == "USER"][-1]
    assert user not in ("root", "0") and f"useradd --create-home --uid 10001 --shell /usr/sbin/nologin {user}" in RECIPE
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_the_locked_packages_come_before_the_sources() -> None:
    order = [value for name, value in steps() if name == "COPY"]
    assert order == ["requirements.lock ./", ". ."]


def test_nothing_is_fetched_by_address_and_no_index_is_named() -> None:
    assert "ADD" not in [name for name, _ in steps()]
    assert not re.search(r"https?://|index-url|find-links|PIP_", RECIPE)


def test_init_health_and_volume_are_there() -> None:
    told = dict(steps())
    assert told["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'
    assert told["HEALTHCHECK"].endswith('CMD ["python", "-m", "jobs.health"]')
    assert told["VOLUME"] in told["ENV"]


def test_the_context_holds_what_the_recipe_needs_and_no_more() -> None:
    allowed = {line.removeprefix("!") for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert (PROJECT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert allowed == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", "dags", "jobs", "dig_models", "conf"}
    assert all((PROJECT / name).exists() for name in allowed)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name in ("index/simple", "index/files", "wheels", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ca.crt").touch()
    return tmp_path


def test_pips_settings_reach_the_build_with_the_folders_that_they_name(host: Path) -> None:
    conf = f"[global]\nindex-url = https://example.org/simple\ncert = {host}/ca.crt\nfind-links = {host}/nowhere\ncache-dir = {host}\n"
    (host / "pip.conf").write_text(conf)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(host),
        "PIP_CONFIG_FILE": str(host / "pip.conf"),
        "PIP_FIND_LINKS": f"{host}/wheels https://example.org/more",
        "PIP_EXTRA_INDEX_URL": f"file://{host}/index/simple",
        "PIP_DEFAULT_TIMEOUT": "9",
    }
    done = subprocess.run([sys.executable, str(PROGRAM), str(host / "out")], check=True, capture_output=True, text=True, env=environment)
    places = dict(line.removeprefix("--volume=").removesuffix(":ro").split(":") for line in done.stdout.splitlines())
    assert places.keys() == {str(host / name) for name in ("ca.crt", "wheels", "index")}, "the index' files lie beside it"
    parser = configparser.RawConfigParser()
    parser.read(host / "out" / "pip.conf")
    assert dict(parser["global"]) == {
        "index-url": "https://example.org/simple",
        "cert": places[str(host / "ca.crt")],
        "find-links": f"{places[str(host / 'wheels')]}\nhttps://example.org/more",
        "extra-index-url": f"file://{places[str(host / 'index')]}/simple",
        "timeout": "9",
    }
