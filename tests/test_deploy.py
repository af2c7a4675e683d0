"""What deploy/ holds fits together: one folder, one image, one cluster that works."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tbforensics import cluster

DEPLOY = ROOT / "deploy"
SCRIPT = DEPLOY / "ssh" / "cluster.sh"
MANIFESTS = [
    document
    for name in ("cluster.yaml", "job.yaml")
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in MANIFESTS if document["kind"] == kind]


(DASK,), (JOB,) = of_kind("DaskCluster"), of_kind("Job")
NAME = DASK["metadata"]["name"]
PODS = {
    "worker": DASK["spec"]["worker"]["spec"],
    "scheduler": DASK["spec"]["scheduler"]["spec"],
    "job": JOB["spec"]["template"]["spec"],
}


def test_all_pods_have_one_image_and_those_that_work_one_folder_and_their_secrets() -> None:
    assert len({pod["containers"][0]["image"] for pod in PODS.values()}) == 1
    seen = {
        role: {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        for role, pod in PODS.items()
    }
    assert seen["worker"] == seen["job"] and seen["worker"]["project"] == "/project"
    assert "secrets" not in seen["scheduler"]
    given = {volume["name"]: volume for volume in PODS["worker"]["volumes"]}
    assert [claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")] == [
        given["project"]["persistentVolumeClaim"]["claimName"]
    ]
    assert [secret["metadata"]["name"] for secret in of_kind("Secret")] == [
        given["secrets"]["secret"]["secretName"]
    ]


@pytest.mark.parametrize("role", PODS)
def test_a_pod_may_no_more_than_it_must(role: str) -> None:
    pod = PODS[role]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    allowed = pod["containers"][0]["securityContext"]
    assert allowed["readOnlyRootFilesystem"] and not allowed["allowPrivilegeEscalation"]


def test_nobody_reaches_the_cluster_but_itself_its_jobs_and_the_operator() -> None:
    policies = {
        str(policy["spec"]["podSelector"]["matchLabels"]): policy["spec"]
        for policy in of_kind("NetworkPolicy")
    }
    of_cluster, of_job = {"dask.org/cluster-name": NAME}, {"tbforensics": "job"}
    assert set(policies) == {str(of_cluster), str(of_job)}
    assert JOB["spec"]["template"]["metadata"]["labels"] == of_job
    among, operator = policies[str(of_cluster)]["ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in among["from"]] == [of_cluster, of_job]
    assert {port["port"] for port in operator["ports"]} == {8786, 8787}
    assert "ingress" not in policies[str(of_job)]
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())


def test_the_job_asks_the_service_of_that_cluster() -> None:
    service = DASK["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == NAME
    address = f"tcp://{NAME}-scheduler:{service['ports'][0]['port']}"
    assert JOB["spec"]["template"]["spec"]["containers"][0]["args"][-1] == address


# --- the script ----------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of the script, with an `ssh` that stays on this machine."""
    told = tmp_path / "bin" / "ssh"
    told.parent.mkdir()
    told.write_text('#!/bin/sh\nshift 3\nexec sh -c "$*"\n')
    told.chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.write_text("export TBFORENSICS_NODE_BEARER_TOKEN=planted\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{told.parent}:{os.environ['PATH']}",
        "HOSTS": "127.0.0.1 localhost",
        "PROJECT": str(tmp_path / "project"),
        "BIN": str(Path(sys.executable).parent),
        "PORT": str(port),
        "WORKERS": "1",
        "SECRETS": str(secrets),
    }
    yield environment
    script(environment, "stop")


def script(environment: dict[str, str], word: str) -> list[str]:
    done = subprocess.run(
        ["sh", SCRIPT, word], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_script_starts_a_cluster_that_can_be_used_and_stops_all_of_it(
    ssh: dict[str, str],
) -> None:
    project = Path(ssh["PROJECT"])
    (project / "incidents").mkdir(parents=True)
    address = script(ssh, "start")[-1].split()[-1]
    with cluster.workers(address, project, patience_s=60.0) as pool:
        assert pool
        said = pool.submit(os.getenv, "TBFORENSICS_NODE_BEARER_TOKEN").result()
        assert said == "planted", "a worker has the secrets of its host"
    begun = script(ssh, "status")
    assert sorted(line.split()[0] for line in begun) == [
        "127.0.0.1.scheduler",
        "127.0.0.1.worker",
        "localhost.worker",
    ]
    assert all(line.endswith(" runs") for line in begun)
    script(ssh, "stop")
    assert script(ssh, "status") == []
    pids = [line.split()[1] for line in begun]
    for _ in range(200):
        if not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]:
            return
        time.sleep(0.1)
    raise AssertionError("some of them go on")
