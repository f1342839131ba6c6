"""Where the application's parts are, read from the environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    database_url: str
    redis_url: str
    provider_url: str
    provider_key: str
    event_prefix: str

    @classmethod
    def from_environment(cls) -> "Settings":
        return cls(
            database_url=os.environ["DATABASE_URL"],
            redis_url=os.environ["REDIS_URL"],
            provider_url=os.environ.get("ELEVENLABS_BASE_URL", "https://api.elevenlabs.io"),
            provider_key=os.environ["ELEVENLABS_API_KEY"],
            event_prefix=os.environ.get("EVENT_PREFIX", "events:"),
        )
