"""Reading from the environment how many processes train together."""

import pytest

from ssd300_vgg16.distributed.job import Job, job_from
from ssd300_vgg16.errors import UserError

TWO_HOSTS = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[03-05,9],b",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
SRUN_PORT = 20000 + 2 * (1234567 % 6000)


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"NPROC": "1"}, None),
        ({"NPROC": "", "NNODES": ""}, None),
        ({"NPROC": "1", "NNODES": "1", "NODE_RANK": "0"}, None),
        ({"NPROC": "8", "RANK": "3", "WORLD_SIZE": "8"}, None),
        ({"NPROC": "8"}, Job(8)),
        ({"NPROC": "8", "MASTER_ADDR": "elsewhere"}, Job(8)),
        ({"NPROC": "8", "MASTER_PORT": "4000"}, Job(8, port=4000)),
        (TWO_HOSTS, Job(1, 2, 1, "10.0.0.1", 29500)),
        (TWO_HOSTS | {"NPROC": "4", "MASTER_PORT": "65534"}, Job(4, 2, 1, "10.0.0.1", 65534)),
        (TWO_HOSTS | {"SSD_JOIN_TIMEOUT": "90", "SSD_PEER_TIMEOUT": "9"}, Job(1, 2, 1, "10.0.0.1", 29500, 0, 90, 9)),
        (SRUN, Job(1, 4, 3, "node03", SRUN_PORT, 1)),
        (SRUN | {"NPROC": "2"}, Job(2, 4, 3, "node03", SRUN_PORT, 2)),
        (SRUN | {"MASTER_PORT": "4000", "MASTER_ADDR": "ib0"}, Job(1, 4, 3, "ib0", 4000, 1)),
        (SRUN | {"NNODES": "2", "NODE_RANK": "0"}, Job(1, 2, 0, "node03", SRUN_PORT, 1)),
        (SRUN | {"NNODES": "1"}, None),
        (SRUN | {"RANK": "3", "WORLD_SIZE": "8"}, None),
    ],
)
def test_job(environment, job):
    assert job_from(environment) == job


def test_only_srun_makes_tasks_of_an_allocation():
    batch_script = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"} | {"SLURM_NTASKS": "4"}
    interactive_step = SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert job_from(batch_script) is None
    assert job_from(interactive_step) is None
    assert job_from(interactive_step | {"NPROC": "2"}) == Job(2, port=0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("node[03-05,9],b", "node03"),
        ("node[7,9-11]", "node7"),
        ("rack-a[01-03]-x", "rack-a01-x"),
        ("r[1-2]n[3-4],b", "r1n3"),
        ("b,node[1-2]", "b"),
        ("gpu-1.cluster.example.org,x", "gpu-1.cluster.example.org"),
    ],
)
def test_first_host_of_slurms_lists(nodes, first):
    assert job_from(SRUN | {"SLURM_STEP_NODELIST": nodes}).address == first


def test_jobs_next_to_each_other_in_the_queue_share_no_port():
    ports = [job_from(SRUN | {"SLURM_JOB_ID": str(number)}).port for number in range(5990, 6010)]
    used = {used for port in ports for used in (port, port + 1)}
    assert len(used) == 2 * len(ports)
    assert min(used) >= 20000 and max(used) < 32768  # the system hands out those from 32768 by itself


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"NPROC": "0"}, ["NPROC=0 is not a whole number from 1"]),
        ({"NPROC": "two"}, ["NPROC=two"]),
        ({"NPROC": "-1", "MASTER_PORT": "65535"}, ["NPROC=-1", "MASTER_PORT=65535", "65534"]),
        ({"NNODES": "2"}, ["NNODES=2", "NODE_RANK is missing", "from 0 to 1", "MASTER_ADDR is missing"]),
        ({"NNODES": "2", "NODE_RANK": "0"}, ["MASTER_ADDR is missing"]),
        (TWO_HOSTS | {"NODE_RANK": "2", "NPROC": "1.5"}, ["NODE_RANK=2 is not", "from 0 to 1", "NPROC=1.5"]),
        (TWO_HOSTS | {"NNODES": "x"}, ["NNODES=x"]),
        (TWO_HOSTS | {"MASTER_PORT": "0"}, ["MASTER_PORT=0"]),
        (TWO_HOSTS | {"SSD_JOIN_TIMEOUT": "soon", "SSD_PEER_TIMEOUT": "1"}, ["JOIN_TIMEOUT=soon", "PEER_TIMEOUT=1"]),
        (SRUN | {"SLURM_STEP_NODELIST": "", "SLURM_PROCID": ""}, ["MASTER_ADDR is missing", "NODE_RANK is missing"]),
    ],
)
def test_all_that_is_wrong_is_named_at_once(environment, words):
    with pytest.raises(UserError) as caught:
        job_from(environment)
    for word in words:
        assert word in str(caught.value)
