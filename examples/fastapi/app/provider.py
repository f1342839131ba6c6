"""Cloning, which the provider answers at once and finishes later."""

import httpx
from elevenlabs.client import AsyncElevenLabs
from elevenlabs.core.api_error import ApiError


class ProviderUnavailable(Exception):
    """The provider made no clone."""


async def clone(provider: AsyncElevenLabs, name: str, filename: str, sample: bytes) -> str:
    """Makes an instant clone, and returns the provider's id of it."""
    try:
        created = await provider.voices.ivc.create(name=name, files=[(filename, sample)])
    except (ApiError, httpx.HTTPError) as error:
        raise ProviderUnavailable from error
    voice_id: str = created.voice_id
    return voice_id
