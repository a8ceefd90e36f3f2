"""The weather somewhere as words: OpenWeatherMap with a key, Open-Meteo without one, or a recorded answer.

    weather = WeatherSource("Lisbon", provider="open-meteo")
    weather = WeatherSource(recorded="data/weather/rain-at-dusk.json")      # no network

OpenWeatherMap's key comes from the environment variable ``OPENWEATHER_API_KEY`` and is never shown.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..checks import shown
from ..signatures import check_fields
from .client import Patience, get_json
from .description import Description
from .weather_answers import NAMES, number_at, read_weather

REGIONS = ("country_code", "country", "admin1")  # where Open-Meteo's place search says in what a place lies
MOST_PLACES = 100  # that it lists
KEY_VARIABLE = "OPENWEATHER_API_KEY"

Place = str | tuple[float, float]  # a name, or latitude and longitude in degrees


@dataclass(frozen=True)
class Provider:
    """A weather service: its name for people, its address, and the address of its place search, if it has one."""

    name: str
    url: str
    places: str = ""


PROVIDERS = {
    "openweathermap": Provider(NAMES[0], "https://api.openweathermap.org/data/2.5/weather"),
    "open-meteo": Provider(
        NAMES[1], "https://api.open-meteo.com/v1/forecast", "https://geocoding-api.open-meteo.com/v1/search"
    ),
}


@dataclass(frozen=True)
class WeatherSource:
    """The weather at a ``place`` (a name, or latitude and longitude), or in a ``recorded`` answer, as words.

    ``provider`` is ``"openweathermap"`` (with a key) or ``"open-meteo"``; ``patience`` says how long to wait for it.
    ``vocabulary`` is ``"offline"`` for words that the offline model knows, ``"open"`` for plain English. No request is
    sent before :meth:`describe`.
    """

    place: Place | None = None
    recorded: str | os.PathLike | None = None
    provider: str = "openweathermap"
    vocabulary: Literal["offline", "open"] = "offline"
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        check_fields(self, "recorded", "provider", "vocabulary", "patience")
        if (self.place is None) == (self.recorded is None):
            raise ValueError("Give one of the two: a place, such as 'Lisbon' or (38.7, -9.1), or a recorded answer.")
        _provider(self.provider)
        if self.place is not None:
            check_place(self.place)

    def describe(self) -> Description:
        """Fetch or read the weather and put it into words; raises what those two functions raise."""
        if self.recorded is not None:
            weather, origin = read_weather(self.recorded), f"recorded in {Path(self.recorded).name}"
        else:
            weather, origin = read_weather(fetch_weather(check_place(self.place), self.provider, self.patience)), "now"
        where = weather.place or str(self.place or "an unnamed place")
        measured = f"{weather.words('open')}, {weather.celsius:.1f} degrees Celsius"
        return Description(
            weather.words(self.vocabulary), 1.0, f"weather in {where} ({weather.provider}, {origin})", (measured,)
        )


def fetch_weather(place: Place, provider: str = "openweathermap", patience: Patience | None = None) -> dict:
    """Ask a service for the present weather at a place, and return its answer unchanged.

    Raises ``ValueError`` for an invalid place or key, ``PermissionError`` for a key that is refused, ``TimeoutError``
    or ``ConnectionError`` if no answer arrives; no message shows the key.
    """
    service, named = _provider(provider), check_place(place)
    if service.places:
        latitude, longitude = _coordinates(service, named, patience) if isinstance(named, str) else named
        fields = {"current": "temperature_2m,weather_code,is_day", "daily": "sunrise,sunset", "forecast_days": 1}
        where = {"latitude": latitude, "longitude": longitude, "timezone": "auto", "timeformat": "unixtime"}
        return get_json(service.name, service.url, where | fields, patience=patience)
    key = api_key()
    place_asked = {"q": named} if isinstance(named, str) else {"lat": named[0], "lon": named[1]}
    question = place_asked | {"units": "metric", "appid": key}
    return get_json(service.name, service.url, question, secret=key, patience=patience)


def api_key() -> str:
    """Read OpenWeatherMap's key from the environment; raise ``ValueError``, without showing it, if it cannot be one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ValueError(
            f"OpenWeatherMap needs a key: set the environment variable {KEY_VARIABLE}, or take provider='open-meteo', "
            "which needs no key, or a recorded answer (data/weather/)."
        )
    if not (key.isascii() and key.isalnum() and 8 <= len(key) <= 128):
        raise ValueError(f"{KEY_VARIABLE} holds no key: a key is 32 letters and digits.")
    return key


def check_place(place: object) -> Place:
    """Return a place if it is a name, or a latitude in [-90, 90] and a longitude in [-180, 180]."""
    if isinstance(place, str) and 0 < len(place.strip()) <= 100:
        return place
    if isinstance(place, tuple) and len(place) == 2:
        numbers = all(isinstance(side, (int, float)) and math.isfinite(side) for side in place)
        if numbers and abs(place[0]) <= 90 and abs(place[1]) <= 180:
            return place
    raise ValueError(
        "A place is a name such as 'Lisbon' or 'Lisbon,PT', or (latitude, longitude) in degrees, such as (38.7, -9.1); "
        f"got {shown(place)}."
    )


def _provider(name: str) -> Provider:
    if not isinstance(name, str) or name not in PROVIDERS:
        raise ValueError(f"There is no weather provider {shown(name)}; take {' or '.join(map(repr, PROVIDERS))}.")
    return PROVIDERS[name]


def _coordinates(service: Provider, place: str, patience: Patience | None) -> tuple[float, float]:
    """Ask where a place is; of several, the service lists the largest first, and that one is taken.

    The place search takes a name alone. What follows a comma, as in "Lisbon,PT", chooses among its answers: a country's
    code or name, or a state's name.
    """
    name, *regions = (part.strip() for part in place.split(","))
    question = {"name": name, "count": MOST_PLACES if any(regions) else 1}
    found = get_json(service.name, service.places, question, patience=patience).get("results")
    for one in found if isinstance(found, list) else []:
        known = {str(one.get(field, "")).casefold() for field in REGIONS} if isinstance(one, dict) else set()
        if all(region.casefold() in known for region in regions if region):
            latitude, longitude = (number_at(one, service.name, axis) for axis in ("latitude", "longitude"))
            return latitude, longitude
    raise ValueError(f"{service.name} knows no place {place!r}; try its English name or (latitude, longitude).")
