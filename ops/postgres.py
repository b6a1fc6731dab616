"""PostgreSQL on a data folder of its own; Airflow and MLflow keep their records in it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ops.service import LOOPBACK, Service, StackError, as_user
from ops.state import private_folder

ACCOUNT = "postgres"
SUPERUSER = "dig"


def account() -> str | None:
    """System user that must run PostgreSQL: it refuses to run as root, and anybody else runs it as himself.

    Raises:
        StackError: we are root, and the packages' user is not there.
    """
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam(ACCOUNT).pw_name
    except KeyError:
        raise StackError(f"PostgreSQL does not run as root, and there is no system user {ACCOUNT!r}: install Debian's postgresql") from None


def reaches(user: str | None, folder: Path) -> bool:
    """Whether a user may enter a folder, tried as that user: modes, groups, access lists and mounts all have a say."""
    return subprocess.run(["test", "-x", str(folder)], cwd="/", check=False, **as_user(user)).returncode == 0


def choose_folder(stack: Path, marker: str) -> Path:
    """Where the data lie: in the stack's folder if PostgreSQL's user gets there, else in the home of that user."""
    user = account()
    if user is None or reaches(user, stack):
        return stack / "postgres"
    return Path(pwd.getpwnam(user).pw_dir) / f"dig-{marker}"


@dataclass(frozen=True)
class Postgres:
    """A server's programs, data and address.

    Attributes:
        programs: folder of ``initdb``, ``postgres`` and ``pg_isready``.
        folder: holds the data folder.
        password: of ``SUPERUSER``.
    """

    programs: Path
    folder: Path
    port: int
    password: str

    def service(self) -> Service:
        """The server."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "64MB",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return Service(
            name="postgres",
            command=(str(self.programs / "postgres"), "-D", str(self.folder / "data"), *options),
            prepare=self.initialise,
            healthy=self.healthy,
            account=account(),
            stop_signal=signal.SIGINT,  # fast shutdown: do not wait for clients to leave
            patience=30.0,
            url=f"postgresql://{LOOPBACK}:{self.port}",
        )

    def initialise(self) -> None:
        """Make the data folder if there is none; half a one is made anew.

        Raises:
            StackError: ``initdb`` failed.
        """
        if (self.folder / "data").is_dir():
            return
        user = account()
        private_folder(self.folder)
        fresh, words = self.folder / "data.new", self.folder / "password"
        shutil.rmtree(fresh, ignore_errors=True)
        words.unlink(missing_ok=True)
        with os.fdopen(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(self.password)
        if user is not None:
            shutil.chown(self.folder, user, user)
            shutil.chown(words, user, user)
        command = [str(self.programs / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "--pwfile", str(words)]
        command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **as_user(user))
        words.unlink()
        if done.returncode:
            raise StackError(f"initdb of {fresh} failed: {(done.stderr or done.stdout).strip()}")
        fresh.rename(self.folder / "data")

    def healthy(self, since: float) -> bool:
        """Whether the server takes connections."""
        command = [str(self.programs / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port), "-t", "2"]
        return subprocess.run(command, cwd="/", check=False).returncode == 0

    def uri(self, name: str, password: str) -> str:
        """Address of the database ``name`` for the user of the same name, as SQLAlchemy takes it."""
        return f"postgresql+psycopg2://{name}:{password}@{LOOPBACK}:{self.port}/{name}"

    def ensure_database(self, name: str, password: str) -> None:
        """Make a user and a database of the same name that belongs to it, if they are missing.

        Raises:
            StackError: the server refuses.
        """
        import psycopg2
        from psycopg2 import sql

        try:
            server = psycopg2.connect(host=LOOPBACK, port=self.port, user=SUPERUSER, password=self.password, dbname="postgres")
        except psycopg2.OperationalError as error:
            raise StackError(f"PostgreSQL on port {self.port} refuses the stack's own password: {str(error).strip()}") from None
        server.autocommit = True  # a database cannot be made within a transaction
        try:
            with server.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(name)), [password])
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(name)))
        finally:
            server.close()
