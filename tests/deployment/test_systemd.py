"""The units under systemd/: known to systemd, closed enough, and in step with the exit codes."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from project import CONFIGURATION, ROOT, SECONDS_TO_OPEN, SECONDS_TO_STOP, exit_codes, never_retried, seconds

UNITS = ROOT / "systemd"
SERVICES = ("voice-sync.service", "voice-syncd.service")
DROP_INS = ("hints.conf", "redis.conf", "sqlite.conf")
# In tenths: 1.5.
THRESHOLD = "15"
# What systemd 252, the oldest to serve, would pass over with a warning. It matters where systemd-analyze is newer and takes it.
NEWER_THAN_252 = {
    "DeferReactivation", "DelegateNamespaces", "FileDescriptorStorePreserve", "ImportCredential", "MemoryPressureWatch",
    "MemoryZSwapWriteback", "OpenFile", "PrivateBPF", "PrivatePIDs", "RestartMaxDelaySec", "RestartMode", "RestartSteps",
    "RootEphemeral", "SetLoginEnvironment", "SurviveFinalKillSignal",
}  # fmt: skip


def settings(text: str) -> dict[str, list[str]]:
    pairs = re.findall(r"^(\w+)=(.*)$", text, re.M)
    result: dict[str, list[str]] = {}
    for key, value in pairs:
        result.setdefault(key, []).append(value)
    return result


@unittest.skipUnless(sys.platform == "linux", "systemd is Linux's")
class Analysis(unittest.TestCase):
    """By systemd-analyze, on copies whose program exists."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        for path in UNITS.iterdir():
            text = path.read_text().replace("ExecStart=voice-sync ", f"ExecStart={sys.executable} ")
            (self.directory / path.name).write_text(text)

    def add(self, unit: str, line: str):
        path = self.directory / unit
        path.write_text(path.read_text().replace("[Service]\n", f"[Service]\n{line}\n", 1))

    def drop_in(self, *names: str):
        for service in SERVICES:
            (self.directory / f"{service}.d").mkdir()
            for name in names:
                shutil.copy(self.directory / name, self.directory / f"{service}.d")

    def analyze(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["systemd-analyze", *arguments],
            cwd=self.directory, text=True, capture_output=True, env={**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": ""},
        )  # fmt: skip

    def complaints(self) -> str:
        """It exits 0 where it does not know a key, so what it says is what counts."""
        done = self.analyze("verify", *SERVICES, "voice-sync.timer")
        return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")

    def exposed(self, service: str) -> str:
        done = self.analyze("security", "--offline=yes", "--no-pager", f"--threshold={THRESHOLD}", service)
        self.assertIn("exposure level", done.stdout, done.stderr)
        if done.returncode:
            return done.stdout
        print(done.stdout.strip().splitlines()[-1], file=sys.stderr)
        return ""

    def test_units_are_known_to_systemd(self):
        self.assertEqual(self.complaints(), "")

    def test_drop_ins_are_known_to_systemd(self):
        self.drop_in(*DROP_INS)
        self.assertEqual(self.complaints(), "")

    def test_services_are_closed(self):
        for service in SERVICES:
            self.assertEqual(self.exposed(service), "")

    def test_services_are_closed_with_drop_ins(self):
        self.drop_in(*DROP_INS)
        for service in SERVICES:
            self.assertEqual(self.exposed(service), "")

    def test_an_unknown_key_is_refused(self):
        self.add(SERVICES[1], "RestartSometimes=yes")
        self.assertIn("RestartSometimes", self.complaints())

    def test_an_unknown_value_is_refused(self):
        self.add(SERVICES[0], "Type=once")
        self.assertIn("once", self.complaints())

    def test_a_missing_program_is_refused(self):
        self.add(SERVICES[0], "ExecStartPre=/nowhere/voice-sync")
        self.assertIn("/nowhere/voice-sync", self.complaints())

    def test_an_open_service_is_refused(self):
        path = self.directory / SERVICES[0]
        path.write_text(re.sub(r"^SystemCallFilter=.*\n", "", path.read_text(), flags=re.M))
        self.assertIn("SystemCallFilter", self.exposed(SERVICES[0]))


class Agreement(unittest.TestCase):
    """With the documentation and with each other."""

    def setUp(self):
        self.texts = {path.name: path.read_text() for path in UNITS.iterdir()}
        self.once, self.daemon = (settings(self.texts[name]) for name in SERVICES)

    def test_what_must_not_be_retried_is_not(self):
        codes = set(map(int, self.daemon["RestartPreventExitStatus"][0].split()))
        self.assertEqual(codes, never_retried())
        # Else it would never start the daemon again.
        self.assertEqual(self.daemon["Restart"], ["on-failure"])

    def test_work_that_is_left_is_no_failure_of_a_run(self):
        left = {code for code, advice in exit_codes().items() if advice == "the next pass continues"}
        self.assertEqual(set(map(int, self.once["SuccessExitStatus"][0].split())), left)

    def test_a_stop_is_waited_for(self):
        for unit in (self.once, self.daemon):
            self.assertGreater(seconds(unit["TimeoutStopSec"][0]), SECONDS_TO_STOP)

    def test_a_start_is_waited_for(self):
        runtime = seconds(re.search(r"--max-runtime (\S+)", self.once["ExecStart"][0])[1])
        self.assertGreater(seconds(self.once["TimeoutStartSec"][0]), SECONDS_TO_OPEN + runtime + SECONDS_TO_STOP)
        self.assertGreater(seconds(self.daemon["TimeoutStartSec"][0]), SECONDS_TO_OPEN)

    def test_both_services_have_the_same_sandbox(self):
        sandboxes = [
            re.search(r"^WorkingDirectory=.*?(?=^\[Install\]|\Z)", self.texts[name], re.M | re.S)[0].strip() for name in SERVICES
        ]
        self.assertEqual(*sandboxes)

    def test_nothing_is_newer_than_systemd_252(self):
        for name, text in self.texts.items():
            if name != "voice-sync.env":
                self.assertEqual(settings(text).keys() & NEWER_THAN_252, set(), name)

    def test_settings_are_documented(self):
        # A variable holds either the value or, as an _FILE, where it is: secrets, which belong into credentials.
        documented = set(re.findall(r"`((?:VOICE_SYNC|ELEVENLABS_BASE)_\w+)`", CONFIGURATION))
        names = set(re.findall(r"^#(\w+)=", self.texts["voice-sync.env"], re.M)) - {"RUST_LOG", "HTTPS_PROXY"}
        secrets = {name for name in documented if re.search(r"(_TOKEN|_PING_URL)(_FILE)?$", name)}
        self.assertEqual(names, documented - secrets)
