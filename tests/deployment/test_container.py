"""What the Dockerfile's image would hold, run where there is nothing else: a root directory with the same files, and a
network of its own, in which this process is the only name server."""

import fcntl
import json
import os
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from project import ROOT, built

# First as any user may; in a container root may only do the second.
WAYS_IN = (["unshare", "--user", "--map-root-user", "--net", "--mount"], ["unshare", "--net", "--mount"])
HELP = """cannot make namespaces of network and mounts; one of these helps:
  sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0     # Ubuntu
  sudo sysctl -w kernel.unprivileged_userns_clone=1                 # older Debian
  docker run --privileged …                                         # in a container"""

VOICES = """
CREATE TABLE voices (
    id CHAR(32) PRIMARY KEY,
    user_id CHAR(32) NOT NULL,
    elevenlabs_voice_id VARCHAR(100) NOT NULL UNIQUE,
    preview_url VARCHAR(1024),
    status VARCHAR(10) NOT NULL DEFAULT 'processing',
    created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at DATETIME
);
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 500)
INSERT INTO voices (id, user_id, elevenlabs_voice_id) SELECT printf('%032x', n), printf('%032x', 0), 'sim-ready-' || n FROM numbers;
"""


def image_files() -> dict[str, str]:
    """What the last stage of the Dockerfile copies: from where in the build, and to where."""
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM scratch\n")[2]
    files = dict(re.findall(r"^COPY --from=build (\S+) (\S+)$", last, re.M))
    if len(files) != len(re.findall(r"^(?:COPY|ADD)", last, re.M)) or "/voice-sync" not in files:
        raise AssertionError("the last stage of the Dockerfile was not understood")
    return files


def here(source: str) -> Path:
    """Where this machine has what the Dockerfile's build has in another place."""
    if source == "/voice-sync":
        return built("VOICE_SYNC_TEST_STATIC")
    fedora = Path("/etc/pki/tls/certs/ca-bundle.crt")
    return fedora if source.endswith("/ca-certificates.crt") and fedora.exists() else Path(source)


def raise_loopback():
    """What `ip link set lo up` does, which may not be installed."""
    SIOCSIFFLAGS, IFF_UP = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


class NameServer(threading.Thread):
    """Says of every name that it is this machine, by IPv4."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.asked = set()

    def run(self):
        A = 1
        while True:
            query, client = self.socket.recvfrom(512)
            end = query.index(0, 12) + 5
            name, kind = query[12 : end - 5], struct.unpack(">H", query[end - 4 : end - 2])[0]
            self.asked.add(re.sub(rb"[\x00-\x20]", b".", name).strip(b".").decode())
            answer = struct.pack(">HHHIH", 0xC00C, A, 1, 60, 4) + bytes([127, 0, 0, 1]) if kind == A else b""
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, bool(answer), 0, 0)
            self.socket.sendto(header + query[12:end] + answer, client)


class InTheImage(unittest.TestCase):
    """Runs inside of the namespace: see Container."""

    @classmethod
    def setUpClass(cls):
        raise_loopback()
        cls.names = NameServer()
        cls.names.start()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        for source, target in image_files().items():
            path = cls.root / target.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here(source), path)
        # These every container runtime puts there: a name server, devices, and a volume.
        (cls.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
        (cls.root / "dev").mkdir()
        for device in ("dev/null", "dev/urandom", "dev/random"):
            (cls.root / device).touch()
            subprocess.run(["mount", "--bind", f"/{device}", cls.root / device], check=True)
            cls.addClassCleanup(subprocess.run, ["umount", cls.root / device], check=True)
        (cls.root / "data").mkdir()
        simulator = subprocess.Popen([built("VOICE_SYNC_TEST_SIMULATOR"), "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
        cls.addClassCleanup(simulator.communicate)
        cls.addClassCleanup(simulator.terminate)
        cls.port = simulator.stdout.readline().strip().rpartition(":")[2]

    def run_inside(self, *command: str, by: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*by, "unshare", f"--root={self.root}", "--wd=/data", *command],
            env={"PATH": os.environ["PATH"], **environment}, text=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def voice_sync(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return self.run_inside("/voice-sync", *arguments, ELEVENLABS_API_KEY="any", **environment)

    def test_it_starts(self):
        done = self.voice_sync("--version")
        self.assertRegex(done.stdout, r"^voice-sync \d+\.\d+\.\d+ \(\w+(-dirty)?, \S+\)\n$")

    def test_it_finishes_voices_of_a_provider_with_a_name(self):
        path = self.root / "data" / "voices.db"
        with sqlite3.connect(path) as application:
            application.executescript(VOICES)
        url = f"http://simulator.localhost:{self.port}"
        done = self.voice_sync("sync-once", "--output", "json", DATABASE_URL="sqlite://voices.db", ELEVENLABS_BASE_URL=url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["completed"], 500)
        with sqlite3.connect(path) as application:
            self.assertEqual(application.execute("SELECT DISTINCT status FROM voices").fetchall(), [("completed",)])
        self.assertIn("simulator.localhost", self.names.asked)

    def test_a_directory_that_it_may_not_enter_contains_no_configuration(self):
        directory = self.root / "etc/voice-sync"
        directory.mkdir()
        (directory / "config.toml").write_text("concurrency = 7\n")
        # Root's own permission bits count as well without these capabilities.
        mortal = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        check = ("/voice-sync", "config", "check", "--output=json")
        settings = {"DATABASE_URL": "sqlite://voices.db", "ELEVENLABS_API_KEY": "any"}
        for mode, file in ((0o700, "/etc/voice-sync/config.toml"), (0o000, None)):
            directory.chmod(mode)
            done = self.run_inside(*check, by=mortal, **settings)
            self.assertEqual((done.returncode, json.loads(done.stdout)["file"]), (0, file), done.stderr)
        directory.chmod(0o700)
        shutil.rmtree(directory)

    def connects_to(self, name: str):
        """Fails if there is no connection to a database of that name, which here hangs up at once."""
        with socket.create_server(("127.0.0.1", 0)) as database:
            database.settimeout(60)
            connected = threading.Event()

            def hang_up():
                database.accept()[0].close()
                connected.set()

            threading.Thread(target=hang_up, daemon=True).start()
            url = f"postgresql://user:password@{name}:{database.getsockname()[1]}/db"
            done = self.voice_sync("migrate", DATABASE_URL=url)
            self.assertTrue(connected.is_set(), done.stderr)

    def test_it_knows_names_of_the_name_server(self):
        self.connects_to("postgres.example")
        self.assertIn("postgres.example", self.names.asked)

    def test_it_knows_names_of_the_hosts_file(self):
        hosts = self.root / "etc/hosts"
        hosts.write_text("127.0.0.1 postgres-by-hosts\n")
        self.addCleanup(hosts.unlink)
        self.connects_to("postgres-by-hosts")
        self.assertNotIn("postgres-by-hosts", self.names.asked)

    def test_a_program_that_needs_more_fails(self):
        shutil.copy("/bin/true", self.root / "dynamic")
        self.assertIn("No such file", self.run_inside("/dynamic").stderr)


@unittest.skipUnless(sys.platform == "linux", "containers are Linux's")
class Container(unittest.TestCase):
    def test_the_image_holds_all_that_the_program_needs(self):
        way_in = next((way for way in WAYS_IN if subprocess.run([*way, "true"], capture_output=True).returncode == 0), None)
        self.assertIsNotNone(way_in, HELP)
        subprocess.run([*way_in, sys.executable, __file__], check=True)


def load_tests(_loader, _tests, _pattern):
    """Not InTheImage, which must not run outside of its namespace."""
    return unittest.defaultTestLoader.loadTestsFromTestCase(Container)


if __name__ == "__main__":
    inside = unittest.defaultTestLoader.loadTestsFromTestCase(InTheImage)
    sys.exit(not unittest.TextTestRunner().run(inside).wasSuccessful())
