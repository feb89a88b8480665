"""How many processes train together, and where: read from NPROC and its companions, or from SLURM's srun."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.ports import LOOPBACK

DEFAULT_PORT = 29500
MAX_COUNT = 100_000  # processes of a host, or hosts
MAX_PORT = 65534  # the supervisors' links use the one above
MIN_SECONDS, MAX_SECONDS = 2, 1_000_000  # Linux counts the milliseconds of a timeout in 32 bits


@dataclass(frozen=True)
class Job:
    """A training run of several processes, as seen by the supervisor of one host."""

    processes: int  # on this host
    hosts: int = 1
    host_rank: int = 0
    address: str = LOOPBACK  # of the host with host_rank 0
    port: int = 0  # on it, for OneFlow; the one above is for the supervisors' links. 0: any free one (one host only)
    first_local_rank: int = 0  # LOCAL_RANK of the first process here: srun may start several supervisors on a host
    join_timeout: int = 300  # seconds for all hosts to come
    peer_timeout: int = 30  # seconds after which a silent host is lost
    secret: str = field(default="", repr=False)  # by which several hosts know one another
    program: str = "train.sh"  # as messages call it


def job_from(environment: Mapping[str, str], program: str = Job.program) -> Job | None:
    """The job the environment asks for; None for a single process, and for a process that is part of a job.

    Raises UserError naming every variable that is missing or wrong.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return None
    given = {name: value for name, value in environment.items() if value}
    by_srun = "SLURM_STEP_ID" in given and (_count(given, "SLURM_STEP_NUM_TASKS") or 1) > 1
    if by_srun:
        given = _srun_settings(given) | given
    problems: list[str] = []
    processes = _number(given, "NPROC", 1, MAX_COUNT, problems, default=1)
    hosts = _number(given, "NNODES", 1, MAX_COUNT, problems, default=1)
    port = _number(given, "MASTER_PORT", 1, MAX_PORT, problems, default=DEFAULT_PORT if hosts > 1 else 0)
    if hosts == 1:
        _refuse(problems)
        return Job(processes, port=port, program=program) if processes > 1 else None
    host_rank = _number(given, "NODE_RANK", 0, hosts - 1, problems)
    if "MASTER_ADDR" not in given:
        problems.append("MASTER_ADDR is missing (name or address of the host with NODE_RANK=0)")
    join_timeout = _number(given, "SSD_JOIN_TIMEOUT", MIN_SECONDS, MAX_SECONDS, problems, default=Job.join_timeout)
    peer_timeout = _number(given, "SSD_PEER_TIMEOUT", MIN_SECONDS, MAX_SECONDS, problems, default=Job.peer_timeout)
    _refuse(problems, f" (NNODES={hosts})")
    first_local_rank = (_count(given, "SLURM_LOCALID") or 0) * processes if by_srun else 0
    place = processes, hosts, host_rank, given["MASTER_ADDR"], port, first_local_rank
    return Job(*place, join_timeout, peer_timeout, given.get("SSD_JOB_SECRET", ""), program)


def _number(
    given: Mapping[str, str], name: str, low: int, high: int, problems: list[str], default: int | None = None
) -> int:
    """The variable's value; what is wrong with it is added to the problems."""
    if name not in given and default is not None:
        return default
    value = _count(given, name)
    if value is not None and low <= value <= high:
        return value
    problem = f"{name}={given[name]} is not" if name in given else f"{name} is missing:"
    problems.append(f"{problem} a whole number from {low} to {high}")
    return low


def _count(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def _refuse(problems: list[str], about: str = "") -> None:
    if problems:
        raise UserError(f"settings for several processes{about}: {'; '.join(problems)}")


def _srun_settings(given: Mapping[str, str]) -> dict[str, str]:
    """NNODES and its companions for a task of srun: each task is a "host" with a supervisor of its own.

    SLURM_STEP_ID tells that srun has started the tasks: those of a batch script's or an interactive shell's allocation
    are not running yet.
    """
    settings = {"NNODES": given["SLURM_STEP_NUM_TASKS"]}
    if "SLURM_PROCID" in given:
        settings["NODE_RANK"] = given["SLURM_PROCID"]
    if first := _first_host(given.get("SLURM_STEP_NODELIST", "")):
        settings["MASTER_ADDR"] = first
    if (job := _count(given, "SLURM_JOB_ID")) is not None:
        # Two ports a job: neighbours in the queue often share a host. Below the ports the system hands out by itself.
        settings["MASTER_PORT"] = str(20000 + 2 * (job % 6000))
    return settings


def _first_host(hosts: str) -> str:
    """`rack[03-05,9]-x,b` is SLURM's way to write rack03-x, rack04-x, rack05-x, rack9-x and b."""
    first = re.split(r",(?![^\[\]]*\])", hosts)[0]  # at commas outside of brackets
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)
