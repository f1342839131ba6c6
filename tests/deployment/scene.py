"""A site in the middle of its work: an SQLite file with voices of every kind, the simulator, some passes, and a daemon."""

import json
import os
import random
import sqlite3
import subprocess
import tempfile
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

from project import built

TABLE = """CREATE TABLE voices (
    id CHAR(36) PRIMARY KEY, user_id CHAR(36) NOT NULL, elevenlabs_voice_id VARCHAR(100) NOT NULL UNIQUE,
    preview_url VARCHAR(1024), status VARCHAR(10) NOT NULL, created_at DATETIME NOT NULL, completed_at DATETIME)"""
MINUTE, HOUR, DAY = 60, 3600, 86400
# Fates that the simulator knows, how many voices have each, and of what age in seconds they are.
VOICES = (
    ("ready", 400, (3, 5 * MINUTE)),
    ("nopreview", 60, (5, 20 * MINUTE)),
    ("pvctraining", 25, (10 * MINUTE, 9 * HOUR)),
    ("pvcunverified", 8, (DAY, 3 * DAY)),
    ("missing", 3, (MINUTE, HOUR)),
    ("banned", 4, (MINUTE, HOUR)),
    ("longpreview", 2, (HOUR, 2 * HOUR)),
)


class Scene:
    def __init__(self, seed: int = 7):
        self.random = random.Random(seed)
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.processes: list[subprocess.Popen] = []
        simulator = self.start([str(built("VOICE_SYNC_TEST_SIMULATOR")), "--listen", "127.0.0.1:0", "--latency", "40ms"])
        self.environment = {
            "DATABASE_URL": "sqlite:///app.db",
            "ELEVENLABS_API_KEY": "any",
            "ELEVENLABS_BASE_URL": simulator.stdout.readline().strip(),
            "VOICE_SYNC_FAIL_AFTER": "2d",
        }
        with sqlite3.connect(self.directory / "app.db") as database:
            database.execute(TABLE)
        for _ in range(4):
            self.add_voices(0.25)
            self.voice_sync("sync-once")

    def start(self, command: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.directory,
            env=getattr(self, "environment", {}),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def add_voices(self, share: float):
        present = datetime.now(timezone.utc).replace(tzinfo=None)
        rows = []
        for fate, number, (youngest, oldest) in VOICES:
            for _ in range(max(1, round(number * share))):
                # Most are young.
                age = youngest + (oldest - youngest) * self.random.random() ** 2
                key, user = (str(uuid.UUID(int=self.random.getrandbits(128), version=4)) for _ in range(2))
                created = (present - timedelta(seconds=age)).isoformat(sep=" ")
                rows.append((key, user, f"sim-{fate}-{key[:8]}", "processing", created))
        with sqlite3.connect(self.directory / "app.db") as database:
            database.executemany(
                "INSERT INTO voices (id, user_id, elevenlabs_voice_id, status, created_at) VALUES (?, ?, ?, ?, ?)", rows
            )

    def voice_sync(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [str(built("VOICE_SYNC_TEST_STATIC")), *arguments], text=True, capture_output=True, cwd=self.directory,
            env={**self.environment, **environment},
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def serve(self) -> str:
        """The address of a daemon's page, once it has made a pass."""
        daemon = self.start([str(built("VOICE_SYNC_TEST_STATIC")), "daemon", "--listen", "127.0.0.1:0", "--log-format", "json"])
        address = None
        for line in daemon.stderr:
            said = json.loads(line)
            if said["message"] == "listening":
                address = said["address"]
            if said["message"] == "pass finished":
                break
        # What it says later must not fill the pipe.
        os.set_blocking(daemon.stderr.fileno(), False)
        return f"http://{address}/"

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()
        self.temporary.cleanup()
