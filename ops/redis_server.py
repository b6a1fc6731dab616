"""Redis with a password and a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ops.service import LOOPBACK, Service
from ops.state import private_folder, write_private


@dataclass(frozen=True)
class Redis:
    """A server's program, folder and address."""

    program: Path
    folder: Path
    port: int
    password: str

    @property
    def uri(self) -> str:
        """Address, with the password."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def service(self) -> Service:
        """The server; its settings, which hold the password, are in a file of its own."""
        return Service(
            name="redis",
            command=(str(self.program), str(self.folder / "redis.conf")),
            prepare=self.write_settings,
            healthy=self.healthy,
            url=f"redis://{LOOPBACK}:{self.port}",
        )

    def settings(self) -> dict[str, str]:
        """What ``redis.conf`` says."""
        return {
            "bind": LOOPBACK,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": f'"{self.folder}"',
            "appendonly": "yes",
            "daemonize": "no",
        }

    def write_settings(self) -> None:
        """Write ``redis.conf``."""
        private_folder(self.folder)
        write_private(self.folder / "redis.conf", "".join(f"{name} {value}\n" for name, value in self.settings().items()))

    def healthy(self, since: float) -> bool:
        """Whether the server answers, with our password."""
        from redis import Redis as Client
        from redis import RedisError

        try:
            with Client(host=LOOPBACK, port=self.port, password=self.password, socket_timeout=2, socket_connect_timeout=2) as client:
                return bool(client.ping())
        except RedisError:
            return False
