"""The command line that starts a training."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

from jobs.config import ConfigError, load
from jobs.launch import torchrun_command

DAY = date(2017, 11, 15)


def test_one_host_is_standalone_with_its_ranks() -> None:
    command = torchrun_command(load(sets=["train.ranks=3"], environ={}), DAY)
    torchrun = ["torch.distributed.run", "--nproc-per-node", "3", "--max-restarts", "0", "--standalone"]
    assert command == [sys.executable, "-m", *torchrun, "-m", "jobs.train", "--date", "2017-11-15"]


def test_several_hosts_meet_at_the_rendezvous() -> None:
    command = torchrun_command(load(sets=["train.hosts=4", "train.rendezvous=h0:29400"], environ={}), DAY)
    options = " ".join(command)
    assert "--nnodes 4 --rdzv-backend c10d --rdzv-endpoint h0:29400 --rdzv-id dig-2017-11-15" in options
    assert "--standalone" not in command and "--local-addr" not in command


def test_hosts_are_given_time_to_come_back_and_restarts() -> None:
    sets = ["hosts=2", "rendezvous=h0:29400", "max_restarts=3", "join_minutes=2", "lost_seconds=30", "address=10.0.0.7"]
    options = " ".join(torchrun_command(load(sets=[f"train.{one}" for one in sets], environ={}), DAY))
    assert "--max-restarts 3" in options and "--local-addr 10.0.0.7" in options
    assert "--rdzv-conf join_timeout=120,keep_alive_interval=10,keep_alive_max_attempt=3,is_host=0" in options


def test_the_host_whose_address_the_rendezvous_has_keeps_it() -> None:
    sets = ["train.hosts=2", "train.rendezvous=10.0.0.7:29400", "train.address=10.0.0.7"]
    assert "is_host=1" in " ".join(torchrun_command(load(sets=sets, environ={}), DAY))


def test_several_hosts_without_a_rendezvous_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.hosts is 4.*train.rendezvous"):
        torchrun_command(load(sets=["train.hosts=4"], environ={}), DAY)


def test_settings_and_overrides_are_handed_on() -> None:
    command = torchrun_command(load(environ={}), DAY, settings=Path("conf/local.yaml"), sets=["train.lr=0.1", "train.epochs=1"])
    assert command[-6:] == ["--config", "conf/local.yaml", "--set", "train.lr=0.1", "--set", "train.epochs=1"]


def test_starting_a_training_loads_no_torch() -> None:
    import subprocess

    code = "import jobs.launch, sys; assert not {'torch', 'pyspark', 'mlflow'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
