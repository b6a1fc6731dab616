"""What the stack remembers between calls: ports, secrets, processes; one file that only its owner can read."""

from __future__ import annotations

import json
import os
import secrets
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dig_models.files import sync_dir
from ops.service import StackError

SECRETS = ("postgres", "postgres_airflow", "postgres_mlflow", "redis", "admin", "fernet", "jwt", "api")


@dataclass(frozen=True)
class Started:
    """A process that the stack started.

    Attributes:
        pid: its number.
        born: boot and clock tick of its start, which no later process with the same number shares; see ``ops.supervise.born``.
        at: seconds since the epoch at its start.
        stop_signal: asks it to end.
        patience: seconds that it gets to do so.
        needs: services that must not be stopped before it.
    """

    pid: int
    born: str
    at: float
    stop_signal: int
    patience: float
    needs: tuple[str, ...] = ()


def new_secret(name: str) -> str:
    """A random secret; ``fernet`` gets the form that Fernet asks for: 32 bytes in URL-safe base 64."""
    if name == "fernet":
        return urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(16 if name == "admin" else 32)  # people type the first; SHA-512 wants 64 bytes of the key that signs tokens


@dataclass
class State:
    """The memory of one stack.

    Attributes:
        marker: random; every process of the stack carries it in its environment, so that what a dead server left can be found.
        config: settings file in force, absolute.
        ports: by service.
        secrets: by ``SECRETS``.
        postgres: folder of PostgreSQL's data.
        migrated: release of Airflow that the metadata were migrated to.
        environment: what a client of the stack needs, secrets included; for processes of the stack it is laid over the caller's.
        processes: what was started, by service.
    """

    marker: str = field(default_factory=lambda: secrets.token_hex(12))
    config: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=lambda: {name: new_secret(name) for name in SECRETS})
    postgres: str = ""
    migrated: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Started] = field(default_factory=dict)


def load_state(folder: Path) -> State | None:
    """The state kept in a stack's folder; None if there is none.

    Raises:
        StackError: the file is there and cannot be read.
    """
    path = folder / "state.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        processes = {name: Started(**{**process, "needs": tuple(process["needs"])}) for name, process in raw["processes"].items()}
        return State(**{**raw, "processes": processes})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StackError(f"{path}: the state of the stack cannot be read: {error}") from None


def save_state(folder: Path, state: State) -> None:
    """Replace the state in a stack's folder; only its owner can read it, also while it is written."""
    write_private(folder / "state.json", json.dumps(asdict(state), indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a file, whole, by one that only its owner can read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_dir(path.parent)


def private_folder(path: Path, mode: int = 0o700) -> Path:
    """The folder, made if it is missing, with this mode whatever the umask."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path
