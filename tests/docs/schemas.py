"""Checks docs/reference/schemas against what voice-sync prints: each command with `--output json`, in many states, on PostgreSQL
and on an SQLite file. Uses the servers and the simulator that scripts/test-docs has ready."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from run import ROOT, VOICE_SYNC, home_made

FOLDER = ROOT / "docs/reference/schemas"
SUFFIX = ".schema.json"
SIMULATOR = ROOT / "target/debug/examples/simulator"
# The schema of what each command prints. Any command may print an error instead.
COMMANDS = {
    "sync-once": "sync-once",
    "migrate": "migrate",
    "doctor": "doctor",
    "status": "status",
    "inspect": "inspect",
    "list": "list",
    "fail": "fail",
    "retry": "retry",
    "outbox list": "outbox-list",
    "outbox resend": "outbox-change",
    "outbox record": "outbox-change",
    "outbox purge": "outbox-change",
    "runs": "runs",
    "config check": "config-check",
    "config show": "config-show",
}
WITHOUT_JSON = {"daemon", "completions", "man"}
# Commands that connect to the database, with arguments that they accept.
ON_DATABASE = [
    "sync-once", "migrate", "status", "inspect any", "list", "fail any --reason any", "retry any", "outbox list", "outbox resend any",
    "outbox record any", "outbox purge --yes", "runs",
]  # fmt: skip
COLUMNS = """id {id} PRIMARY KEY, user_id {id} NOT NULL, elevenlabs_voice_id varchar(100), preview_url varchar(1024),
    status varchar(20) NOT NULL, created_at {time} NOT NULL DEFAULT {now}, completed_at {time}"""
# The provider ids of voices of each kind. The simulator derives what they become from the id. One with a slash is never sent.
VOICES = [
    "sim-ready-1", "sim-ready-2", "sim-banned-1", "sim-banned-2", "sim-nopreview-1", "sim-nopreview-2", "sim-unverified-1", "sim-pvcready-1",
    "sim-pvcfailed-1", "sim-pvctraining-1", "sim-pvcunverified-1", "sim-missing-1", "sim-unlisted-1", "sim-longpreview-1",
    "sim-nulpreview-1", "sim-statuscompleted-1", "sim-statusfailed-1", "sim-statusprocessing-1", "sim-strange-1", "sim-malformed-1",
    "sim-silent-1", "not/sent", None,
]  # fmt: skip
# Nothing listens there.
CLOSED = "127.0.0.1:9"
# A pass with a voice that is unanswerable for the first time ends with 75.
PASSED = (0, 75)


class Schemas:
    """All schemas, and which of them outputs were checked against."""

    def __init__(self):
        files = {path.name.removesuffix(SUFFIX): path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}
        self.schemas = {name: json.loads(path.read_text()) for name, path in files.items()}
        resources = [(path.as_uri(), DRAFT202012.create_resource(self.schemas[name])) for name, path in files.items()]
        registry = Registry().with_resources(resources)
        self.validators = {
            name: Draft202012Validator({"$ref": path.as_uri()}, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)
            for name, path in files.items()
        }
        self.used = {"common"}
        self.ran: set[str] = set()
        self.outputs = 0

    def check(self, name: str, output: str) -> Iterator[str]:
        """What is wrong with an output."""
        self.used.add(name)
        self.outputs += 1
        try:
            instance = json.loads(output)
        except json.JSONDecodeError as error:
            yield f"no JSON: {error}"
            return
        for error in self.validators[name].iter_errors(instance):
            # Of alternatives, what is wrong with the one that is nearest.
            error = best_match([error])
            yield f"{name}{SUFFIX} {error.json_path}: {error.message}"

    def faults(self) -> Iterator[str]:
        """What is wrong with the schemas themselves."""
        if missing := {"date-time", "uuid"} - {*Draft202012Validator.FORMAT_CHECKER.checkers}:
            yield f"formats that are not checked: {missing}"
        for name, schema in self.schemas.items():
            if schema.get("$schema") != Draft202012Validator.META_SCHEMA["$id"]:
                yield f"{name}{SUFFIX} has no $schema, or another one"
            Draft202012Validator.check_schema(schema)
            for part in objects(schema):
                # Only in a definition that others extend may the end be open.
                closed = part.get("additionalProperties") is False or part.get("unevaluatedProperties") is False
                if part.get("type") == "object" and "properties" in part and not closed and part is not schema.get("$defs", {}).get("counts"):
                    yield f"{name}{SUFFIX}: an object with {', '.join(part['properties'])} may have other properties"
                if isinstance(part.get("description"), str):
                    yield from (f"{name}{SUFFIX}: {error}" for error in home_made(part["description"]))

    def unused(self) -> Iterator[str]:
        """Schemas that no output was checked against, commands without one, and schemas that the documentation has no link to."""
        yield from (f"no output was checked against {name}{SUFFIX}" for name in sorted({*self.schemas} - self.used))
        for command in commands():
            if command not in WITHOUT_JSON and command not in self.ran:
                yield f"no output of voice-sync {command} was checked against a schema of its own"
        page = (ROOT / "docs/reference/report.md").read_text()
        yield from (f"report.md has no link to {name}{SUFFIX}" for name in self.schemas if f"(schemas/{name}{SUFFIX})" not in page)


def objects(part: object) -> Iterator[dict]:
    """All objects in it."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from objects(inner)


def commands(*words: str) -> Iterator[str]:
    """Those that the help lists, without groups."""
    text = subprocess.run([VOICE_SYNC, *words, "--help"], text=True, capture_output=True, check=True, env={}).stdout
    below = re.search(r"^Commands:\n(.*?)\n\n", text, re.M | re.S)
    if below is None:
        yield " ".join(words)
        return
    for name in re.findall(r"^  ([a-z]\S*)", below[1], re.M):
        if name != "help":
            yield from commands(*words, name)


class Postgres:
    name = "PostgreSQL"
    columns = COLUMNS.format(id="uuid", time="timestamptz", now="now()")
    unreachable, unreachable_code = f"postgresql://any@{CLOSED}/any", 69

    def __init__(self):
        server = os.environ["VOICE_SYNC_TEST_DATABASE_URL"]
        name = f"schemas_{uuid.uuid4().hex}"
        subprocess.run(["psql", "-qX", server, "-c", f"CREATE DATABASE {name}"], check=True)
        self.url = re.sub(r"/[^/?]*(\?.*)?$", rf"/{name}\1", server)

    def sql(self, statements: str):
        subprocess.run(["psql", "-qX", "-v", "ON_ERROR_STOP=1", self.url, "-c", statements], check=True)

    def locked(self, site: "Site"):
        """A pass while the application has locked a row."""
        psql = ["psql", "-qXAt", "-v", "ON_ERROR_STOP=1", self.url]
        application = subprocess.Popen(psql, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        application.stdin.write(f"BEGIN; SELECT 'locked' FROM voices WHERE id = '{row_id('sim-ready-1')}' FOR UPDATE;\n")
        application.stdin.flush()
        application.stdout.readline()
        site.prints("sync-once --voice sim-ready-1", code=75)
        application.communicate("ROLLBACK;\n", timeout=60)


class Sqlite:
    name = "SQLite"
    columns = COLUMNS.format(id="varchar(36)", time="timestamp", now="CURRENT_TIMESTAMP")
    unreachable, unreachable_code = "sqlite:////nowhere/any.db", 78

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "voices.db"
        self.url = f"sqlite:///{self.path}"
        sqlite3.connect(self.path).executescript("PRAGMA journal_mode = WAL")

    def sql(self, statements: str):
        connection = sqlite3.connect(self.path, timeout=60)
        connection.executescript(statements)
        connection.close()

    def locked(self, site: "Site"):
        """Its rows are never locked one by one."""


def row_id(provider_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, provider_id or "none"))


class Site:
    """An application's database, and what is wrong with what commands print there."""

    def __init__(self, database: type[Postgres] | type[Sqlite], simulator: str, schemas: Schemas):
        self.database, self.schemas = database(), schemas
        self.wrong: list[str] = []
        self.environment = {
            "DATABASE_URL": self.database.url,
            "ELEVENLABS_API_KEY": "any",
            "ELEVENLABS_BASE_URL": simulator,
            "REDIS_URL": os.environ["VOICE_SYNC_TEST_REDIS_URL"],
            "VOICE_SYNC_EVENT_PREFIX": f"{uuid.uuid4().hex}:",
            "VOICE_SYNC_OUTPUT": "json",
            "PATH": os.environ["PATH"],
        }

    def insert(self, provider_ids: list[str | None]):
        quoted = ["NULL" if provider_id is None else f"'{provider_id}'" for provider_id in provider_ids]
        rows = [f"('{row_id(id)}', '{uuid.uuid4()}', {text}, 'processing')" for id, text in zip(provider_ids, quoted)]
        self.database.sql(f"INSERT INTO voices (id, user_id, elevenlabs_voice_id, status) VALUES {', '.join(rows)}")

    def prints(self, command: str | list[str], code: int | tuple[int, ...] = 0, schema: str | None = None, **changed: str | None):
        """Checks what a command prints, and its exit code, which many outputs have as well."""
        words = command.split() if isinstance(command, str) else command
        environment = {name: value for name, value in {**self.environment, **changed}.items() if value is not None}
        done = subprocess.run([VOICE_SYNC, *words], text=True, capture_output=True, env=environment, stdin=subprocess.DEVNULL, timeout=120)
        name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
        codes = code if isinstance(code, tuple) else (code,)
        wrong = [] if done.returncode in codes else [f"ended with {done.returncode}, not {code}"]
        wrong += self.schemas.check(schema or COMMANDS[name], done.stdout)
        self.schemas.ran |= {name} if schema is None else set()
        if not wrong and isinstance(shown := json.loads(done.stdout), dict):
            own = shown.get("exit_code", shown.get("error", {}).get("code", done.returncode))
            wrong += [] if own == done.returncode else [f"prints the exit code {own}, and ends with {done.returncode}"]
        if wrong:
            place = f"{self.database.name}: voice-sync {' '.join(words)}"
            self.wrong.append("\n    ".join([place, *wrong, done.stdout[:4000], done.stderr[-1000:]]))

    def fails(self, command: str | list[str], code: int, **changed: str | None):
        self.prints(command, code, "error", **changed)

    def shows_all(self, ids: list[str], doctor: int = 0):
        """What only reads."""
        lists = ["--missing", "--set-aside", "--unanswerable", "--failed", "--status completed", "--older-than 1h"]
        for command in ["list", *(f"list {which}" for which in lists), "runs", "runs --limit 1", "status", "status --fail-after 1ms"]:
            self.prints(command)
        for command in ["outbox list", "outbox list --published", "outbox list --all"]:
            self.prints(command)
        self.prints("doctor", doctor)
        for id in ids:
            self.prints(["inspect", id])

    def watch(self):
        """The first object that `status --watch` prints."""
        words = [VOICE_SYNC, "status", "--watch=100ms"]
        process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment)
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.wrong += [f"{self.database.name}: status --watch: {error}" for error in self.schemas.check("status", line)]


def errors(site: Site):
    """Before there is anything."""
    for command in ON_DATABASE:
        site.fails(command, 78, DATABASE_URL=None)
        site.fails(f"{command} --no-such-option", 2)
        site.fails(f"{command} --config /nowhere/config.toml", 2)
    url, code = site.database.unreachable, site.database.unreachable_code
    # Each of them tries for some seconds.
    with ThreadPoolExecutor(len(ON_DATABASE)) as pool:
        [*pool.map(lambda command: site.fails(command, code, DATABASE_URL=url), ON_DATABASE)]
    site.prints("doctor", code, DATABASE_URL=url)
    for command in ("doctor", "config show", "config check"):
        site.fails(f"{command} --no-such-option", 2)
    for words in ("sync-once --limit any", "list --status any", "outbox list --since any", "fail any", "retry", "status --max-age any"):
        site.fails(words, 2)
    site.fails("sync-once", 78, ELEVENLABS_API_KEY=None)
    site.prints("config show")
    site.prints("config check")
    site.prints("config show", DATABASE_URL=None, REDIS_URL=None, ELEVENLABS_API_KEY=None)
    site.prints("config check", 78, DATABASE_URL=None, ELEVENLABS_API_KEY=None)
    site.prints("config check --columns any=other", 2)
    site.prints("doctor", 78, DATABASE_URL=None)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write('concurrency = 2\nmodels = ["any", "other"]\n')
        file.flush()
        for command in ("config show", "config check", "doctor"):
            site.prints(f"{command} --config {file.name}", 78 if command == "doctor" else 0)


def empty(site: Site):
    """Without a table, without voice-sync's own tables, and without voices."""
    for command in ("sync-once", "list", "status", "inspect any", "retry any", "fail any --reason any"):
        site.fails(command, 78)
    site.database.sql(f"CREATE TABLE voices ({site.database.columns})")
    site.prints("migrate --dry-run")
    site.prints("status --check", 75)
    site.prints("sync-once --dry-run")
    site.shows_all([], 78 if isinstance(site.database, Postgres) else 0)
    site.prints("migrate --adopt --dry-run")
    site.prints("migrate --adopt")
    site.prints("migrate")
    site.database.sql("CREATE TABLE plain (id integer PRIMARY KEY, elevenlabs_voice_id text, user_id integer, created_at timestamp)")
    site.prints("migrate --adopt --table plain --dry-run")
    site.shows_all([])
    site.prints("sync-once")
    site.prints("sync-once --due")
    site.prints("outbox purge --yes")
    site.prints("outbox resend --since 1h --yes")
    site.prints("outbox record --since 1h --yes")
    site.prints("retry --all-failed --yes")
    site.fails("inspect any", 2)
    site.fails("sync-once --voice any", 2)
    site.prints("fail any --reason any", 2)
    site.prints("retry any", 2)
    site.prints("outbox resend any", 2)


def voices(site: Site):
    """Voices of every kind: what passes and commands print while they change them."""
    site.insert(VOICES)
    ids = [row_id(id) for id in VOICES]
    site.prints("status")
    site.prints("sync-once --dry-run", PASSED)
    for id in ids:
        site.prints(["inspect", "--offline", id])
    site.database.locked(site)
    site.prints("sync-once --nudge-previews 0s --limit 3", PASSED)
    # Voices that cannot be looked up or stored are set aside after the third pass.
    for _ in range(3):
        site.prints("sync-once --nudge-previews 0s", PASSED)
    site.shows_all([*ids, *(id for id in VOICES if id)])
    site.watch()
    site.prints("status --check", 75)
    site.prints("status --check=nagios", 1)
    site.prints("status --max-backlog 1 --max-age 1ms --max-silence 1ms --max-event-age 1ms")
    changes(site)
    site.prints("sync-once --missing-after 0s", PASSED)
    site.prints("sync-once --fail-after 1ms --voice sim-nopreview-1")
    site.prints("sync-once --wait 1s", PASSED)
    site.prints("sync-once --max-runtime 1ms", PASSED)
    site.shows_all(ids)


def changes(site: Site):
    """Commands that change something."""
    waiting, unknown = row_id("sim-pvctraining-1"), "no-such-id"
    failed, set_aside = row_id("sim-banned-1"), row_id("not/sent")
    for dry in ("--dry-run", ""):
        site.prints(f"fail {waiting} {failed} sim-ready-1 {unknown} --reason deleted {dry}", 2)
    site.prints(f"fail {waiting} --reason deleted", 2)
    site.shows_all([waiting])
    for dry in ("--dry-run", ""):
        site.prints(f"retry {waiting} {failed} {set_aside} {row_id('sim-malformed-1')} sim-ready-1 {unknown} {dry}", 2)
    site.shows_all([waiting, failed, set_aside])
    site.fails("retry --all-failed", 2)
    site.prints("retry --all-failed --dry-run")
    site.prints("retry --set-aside --dry-run")
    site.prints("retry --set-aside --yes")
    site.fails("outbox purge --pending", 2)
    site.prints(f"outbox resend {row_id('sim-ready-1')}")
    site.prints(f"outbox resend {row_id('sim-ready-1')} {unknown}", 2)
    site.prints("outbox list")
    site.prints("sync-once --limit 1", PASSED)
    site.prints("outbox resend --since 1h --yes")
    site.prints("outbox purge --pending --yes")
    site.prints("outbox purge --older-than 1d --yes")
    site.prints("outbox purge --yes")
    site.prints("outbox list --all")
    site.prints("outbox record --since 1h --dry-run")
    site.prints(f"outbox record {row_id('sim-ready-1')}")
    site.prints("outbox record --since 1h --yes")
    site.prints(f"outbox record {unknown}", 2)
    site.fails(f"outbox record {unknown}", 2, REDIS_URL=None)


def outages(site: Site):
    """Without an event bus, with a wrong key, with too many missing voices, and without the provider."""
    site.insert([f"sim-banned-{number}" for number in range(10, 12)])
    site.prints("sync-once", 75, REDIS_URL=f"redis://{CLOSED}")
    site.shows_all([row_id("sim-banned-10")])
    site.prints("doctor", 75, REDIS_URL=f"redis://{CLOSED}")
    site.prints("sync-once --events none", PASSED)
    site.insert([f"sim-missing-{number}" for number in range(10, 140)])
    site.prints("sync-once --missing-after 0s", 77)
    site.prints("status --check=nagios", 2)
    site.shows_all([row_id("sim-missing-10")], 77)
    site.prints("sync-once", 75, ELEVENLABS_BASE_URL=f"http://{CLOSED}")
    site.prints("status", ELEVENLABS_BASE_URL=f"http://{CLOSED}")
    site.prints("runs", ELEVENLABS_BASE_URL=f"http://{CLOSED}")
    site.prints(["inspect", row_id("sim-missing-10")], ELEVENLABS_BASE_URL=f"http://{CLOSED}")
    site.prints("doctor", 75, ELEVENLABS_BASE_URL=f"http://{CLOSED}")


def plain(site: Site):
    """Keys that are numbers, and no users or times."""
    table = "--table plain"
    site.prints(f"migrate --adopt {table}")
    site.database.sql("INSERT INTO plain (id, elevenlabs_voice_id, status) VALUES (1, 'sim-ready-1', 'processing'), (2, 'sim-banned-1', 'processing')")
    site.prints(f"fail 2 --reason deleted {table}")
    site.prints(f"sync-once {table}")
    for command in ("list --status completed", "list --failed", "inspect 1", "inspect sim-banned-1", "outbox list --all", "status", "doctor", "retry 2"):
        site.prints(f"{command} {table}")


def main():
    schemas = Schemas()
    wrong = [*schemas.faults()]
    simulator = subprocess.Popen([SIMULATOR, "--listen", "127.0.0.1:0", "--latency", "0ms"], text=True, stdout=subprocess.PIPE)
    try:
        address = simulator.stdout.readline().strip()
        for database in (Postgres, Sqlite):
            site = Site(database, address, schemas)
            for state in (errors, empty, plain, voices, outages):
                state(site)
            wrong += site.wrong
    finally:
        simulator.kill()
    wrong += schemas.unused()
    print(f"{schemas.outputs} outputs against {len(schemas.schemas)} schemas: {len(wrong)} wrong")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
