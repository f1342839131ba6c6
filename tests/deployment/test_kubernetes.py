"""The manifests under examples/kubernetes/: valid from the oldest to the newest Kubernetes, and meant as they are written."""

import copy
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

from project import ROOT, SECONDS_TO_OPEN, SECONDS_TO_STOP, built, exit_codes, never_retried, seconds

MANIFESTS = ROOT / "examples" / "kubernetes"
# podFailurePolicy is on by default since 1.26.
VERSIONS = ("1.26", kubernetes_validate.latest_version())

# The schemas call all of these strings. By the name of the field, with that of the object that
# it is in where names clash.
VALUES = {
    "action": {"Count", "FailJob", "Ignore"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "onExitCodes.operator": {"In", "NotIn"},
    "onPodConditions.status": {"True", "False", "Unknown"},
    "onPodConditions.type": {"DisruptionTarget"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "strategy.type": {"RollingUpdate", "Recreate"},
}
# What is or holds text of any kind. A field that is neither here nor in VALUES is a mistake in this file.
FREE = re.compile(r"^(args|name|path|port|image|key|mountPath|value|secretName|containerName|schedule|namespace|cidr|except|"
                  r"apiVersion|kind|drop|cpu|memory)$|labels|Labels|^data$")  # fmt: skip


def rendered(directory: Path) -> list[dict]:
    done = subprocess.run([built("VOICE_SYNC_TEST_KUBECTL"), "kustomize", directory], text=True, capture_output=True)
    # It says on stderr what is deprecated.
    if done.returncode or done.stderr:
        raise AssertionError(f"kubectl kustomize {directory}: {done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


def find(documents: list[dict], kind: str) -> dict:
    return next(document for document in documents if document["kind"] == kind)


def job(document: dict) -> dict | None:
    """The Job's specification in a Job or CronJob."""
    return {"Job": document, "CronJob": document.get("spec", {}).get("jobTemplate")}.get(document["kind"], {}).get("spec")


def pod_template(document: dict) -> dict | None:
    spec = job(document) or document.get("spec", {})
    return spec.get("template")


def check_values(value, parent: str, field: str, problems: list[str]):
    if FREE.search(field):
        return
    if isinstance(value, dict):
        for key, below in value.items():
            check_values(below, field, key, problems)
    elif isinstance(value, list):
        for below in value:
            check_values(below, parent, field, problems)
    elif isinstance(value, str):
        allowed = VALUES.get(f"{parent}.{field}", VALUES.get(field))
        if allowed is None:
            problems.append(f"nothing is known of {parent}.{field}: {value}")
        elif value not in allowed:
            problems.append(f"{parent}.{field} is {value}, which is none of {sorted(allowed)}")


def check_job(spec: dict, problems: list[str]):
    pod = spec["template"]["spec"]
    if pod["restartPolicy"] != "Never":
        problems.append("podFailurePolicy needs restartPolicy Never")
    ruled: dict[str, set[int]] = {"FailJob": set(), "Count": set(), "Ignore": set()}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is None:
            continue
        if codes["containerName"] not in {container["name"] for container in pod["containers"]}:
            problems.append(f"no container is called {codes['containerName']}")
        if codes["operator"] != "In" or codes["values"] != sorted(set(codes["values"])):
            problems.append("exit codes are listed with In, in order, once each")
        ruled.setdefault(rule["action"], set()).update(codes["values"])
    if ruled["FailJob"] != never_retried():
        problems.append(f"FailJob is for {sorted(ruled['FailJob'])}, documented as not to be retried: {sorted(never_retried())}")
    # 1 is for people who are asked, and nobody is asked there.
    if ruled["Count"] != exit_codes().keys() - never_retried() - {0, 1}:
        problems.append(f"Count is for {sorted(ruled['Count'])}, which are not the other exit codes")
    arguments = pod["containers"][0]["args"]
    one_try = SECONDS_TO_OPEN + SECONDS_TO_STOP
    if "--max-runtime" in arguments:
        one_try += seconds(arguments[arguments.index("--max-runtime") + 1])
    if spec["activeDeadlineSeconds"] <= one_try * (spec["backoffLimit"] + 1):
        problems.append(f"activeDeadlineSeconds leaves no time for {spec['backoffLimit'] + 1} tries of {one_try} s")


def check_pod(template: dict, problems: list[str]):
    pod = template["spec"]
    container = pod["containers"][0]
    restricted = {
        "no token": pod.get("automountServiceAccountToken") is False,
        "no service links": pod.get("enableServiceLinks") is False,
        "not root": pod["securityContext"].get("runAsNonRoot") and pod["securityContext"].get("runAsUser", 0) > 0,
        "seccomp": pod["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"},
        "no escalation": container["securityContext"].get("allowPrivilegeEscalation") is False,
        "read-only": container["securityContext"].get("readOnlyRootFilesystem") is True,
        "no capabilities": container["securityContext"].get("capabilities") == {"drop": ["ALL"]},
        "resources": container["resources"].keys() == {"requests", "limits"},
        "grace": pod.get("terminationGracePeriodSeconds", 0) > SECONDS_TO_STOP,
    }
    problems.extend(f"the pod is not restricted: {what}" for what, holds in restricted.items() if not holds)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for variable in container["env"]:
        if not variable["name"].endswith("_FILE"):
            problems.append(f"{variable['name']} is a secret or belongs into the ConfigMap")
        if Path(variable["value"]).parent.as_posix() not in mounts:
            problems.append(f"{variable['name']} is not in a volume")
    if {mount["name"] for mount in container["volumeMounts"]} != {volume["name"] for volume in pod["volumes"]}:
        problems.append("volumes and mounts differ")
    if pod["securityContext"].get("runAsUser") != image_user():
        problems.append(f"runAsUser is not the user of the image, {image_user()}")


def check_daemon(deployment: dict, problems: list[str]):
    template = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}.items():
        if container[probe]["httpGet"]["path"] != path or container[probe]["httpGet"]["port"] not in ports:
            problems.append(f"{probe} does not ask {path} on a port of the container")
    startup = container["startupProbe"]
    if startup["periodSeconds"] * startup["failureThreshold"] <= SECONDS_TO_OPEN:
        problems.append("startupProbe leaves no time to open the database")
    if container["args"] != ["daemon", "--listen", f"0.0.0.0:{ports['metrics']}"]:
        problems.append("the daemon listens elsewhere")
    if not deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items():
        problems.append("the Deployment does not select its pods")


def image_user() -> int:
    return int(re.search(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.M)[1])


def problems(documents: list[dict]) -> list[str]:
    found: list[str] = []
    for document in documents:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                found.append(f"Kubernetes {version}: {getattr(error, 'message', error)}")
        check_values(document, "", "", found)
    if found:
        return found
    policy = find(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for document in documents:
        if template := pod_template(document):
            check_pod(template, found)
            if not policy.items() <= template["metadata"]["labels"].items():
                found.append(f"the NetworkPolicy does not select the pods of {document['kind']}")
        if spec := job(document):
            check_job(spec, found)
        if document["kind"] == "Deployment":
            check_daemon(document, found)
    return found


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.base = rendered(MANIFESTS / "base")

    def mutated(self, kind: str, change) -> str:
        documents = copy.deepcopy(self.base)
        change(find(documents, kind))
        return "\n".join(problems(documents))

    def test_the_base_holds(self):
        kinds = sorted(document["kind"] for document in self.base)
        self.assertEqual(kinds, ["ConfigMap", "CronJob", "Deployment", "Job", "NetworkPolicy"])
        self.assertEqual(problems(self.base), [])

    def test_the_overlay_holds(self):
        documents = rendered(MANIFESTS / "overlays" / "production")
        kinds = sorted(document["kind"] for document in documents)
        self.assertEqual(kinds, ["ConfigMap", "Deployment", "Job", "Namespace", "NetworkPolicy"])
        self.assertEqual(problems(documents), [])
        egress = len(find(self.base, "NetworkPolicy")["spec"]["egress"])
        self.assertEqual(len(find(documents, "NetworkPolicy")["spec"]["egress"]), egress + 1)

    def test_the_overlay_may_have_the_cronjob_instead(self):
        with tempfile.TemporaryDirectory() as temporary:
            copied = Path(temporary) / "kubernetes"
            shutil.copytree(MANIFESTS, copied)
            overlay = copied / "overlays" / "production"
            choice = overlay / "kustomization.yaml"
            choice.write_text(choice.read_text().replace("- path: no-cronjob.yaml", "- path: no-daemon.yaml"))
            documents = rendered(overlay)
        kinds = sorted(document["kind"] for document in documents)
        self.assertEqual(kinds, ["ConfigMap", "CronJob", "Job", "Namespace", "NetworkPolicy"])
        self.assertEqual(problems(documents), [])

    def test_an_unknown_key_is_refused(self):
        found = self.mutated("CronJob", lambda cron: cron["spec"].update(concurrency="Forbid"))
        self.assertIn("concurrency", found)

    def test_an_unknown_value_is_refused(self):
        found = self.mutated("CronJob", lambda cron: cron["spec"].update(concurrencyPolicy="Forbidden"))
        self.assertIn("concurrencyPolicy is Forbidden", found)
        found = self.mutated("CronJob", lambda cron: job(cron)["template"]["spec"].update(restartPolicy="never"))
        self.assertIn("restartPolicy is never", found)

        def operator(cron):
            job(cron)["podFailurePolicy"]["rules"][0]["onExitCodes"]["operator"] = "Is"

        self.assertIn("operator is Is", self.mutated("CronJob", operator))

    def test_a_wrong_restart_policy_is_refused(self):
        found = self.mutated("Job", lambda migrate: job(migrate)["template"]["spec"].update(restartPolicy="OnFailure"))
        self.assertIn("restartPolicy Never", found)

    def test_a_wrong_exit_code_is_refused(self):
        def missing(cron):
            job(cron)["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"].remove(77)

        def wrong(cron):
            job(cron)["podFailurePolicy"]["rules"][-1]["onExitCodes"]["values"].append(111)

        self.assertIn("FailJob", self.mutated("CronJob", missing))
        self.assertIn("Count", self.mutated("CronJob", wrong))

    def test_a_short_deadline_is_refused(self):
        found = self.mutated("CronJob", lambda cron: job(cron).update(activeDeadlineSeconds=300))
        self.assertIn("activeDeadlineSeconds", found)

    def test_an_open_pod_is_refused(self):
        found = self.mutated("Deployment", lambda daemon: daemon["spec"]["template"]["spec"].update(enableServiceLinks=True))
        self.assertIn("no service links", found)

    def test_pods_outside_of_the_network_policy_are_refused(self):
        name = "app.kubernetes.io/name"
        found = self.mutated("Deployment", lambda daemon: daemon["spec"]["template"]["metadata"]["labels"].pop(name))
        self.assertIn("NetworkPolicy", found)
