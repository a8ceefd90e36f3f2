"""Read the answers of weather services into one form: OpenWeatherMap's current weather, Open-Meteo's forecast.

Every field is checked before use: a service may answer nonsense, and a file may hold anything.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..files import as_path
from .client import MAX_BYTES
from .weather_words import (
    LIGHTS,
    OPEN_METEO,
    OPENWEATHERMAP,
    Codes,
    condition,
    light_word,
    offline_words,
    temperature_word,
)

NAMES = ("OpenWeatherMap", "Open-Meteo")
LARGEST = 1e12  # of any number in an answer
COLDEST, HOTTEST = -95.0, 65.0  # degrees Celsius: a little beyond the records measured near the ground


@dataclass(frozen=True)
class Weather:
    """What a service said, in the same form for all services."""

    kind: str  # "rain", "clouds", ...: a key of weather_words.BACKGROUNDS
    condition: str  # "heavy rain"
    celsius: float
    light: str  # "dawn", "day", "dusk" or "night"
    provider: str
    place: str = ""

    def words(self, vocabulary: Literal["offline", "open"] = "offline") -> str:
        """Put it in the words of the offline model's captions, or in plain English (``"open"``) for other models.

        >>> Weather("rain", "heavy rain", 4.5, "dusk", "Open-Meteo").words("open")
        'heavy rain at dusk, cold weather'
        """
        temperature = temperature_word(self.celsius)
        if vocabulary == "offline":
            return offline_words(self.kind, temperature, self.light)
        return f"{self.condition} {LIGHTS[self.light]}, {temperature} weather"


def read_weather(answer: Mapping | str | os.PathLike) -> Weather:
    """Read an answer of either service, or a file that recorded one.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for anything that is not such an answer.
    """
    if not isinstance(answer, Mapping):
        answer = _recorded(as_path(answer, "A recorded answer"))
    if "current" in answer:
        return _read_open_meteo(answer)
    if "weather" in answer:
        return _read_openweathermap(answer)
    raise ValueError(
        "This is no answer about the current weather: OpenWeatherMap's has a field 'weather', Open-Meteo's a field "
        f"'current'; this one has {', '.join(map(str, answer))[:80] or 'no fields'}."
    )


def _recorded(file: Path) -> Mapping:
    if not file.is_file():
        raise FileNotFoundError(f"There is no recorded answer {file} (looked from {Path.cwd()}).")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has more than {MAX_BYTES:,} bytes; no recorded answer is that long.")
    try:
        answer = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ValueError(f"{file} holds no JSON object; record a service's answer unchanged.")
    return answer


def _read_openweathermap(answer: Mapping) -> Weather:
    name = NAMES[0]
    code = number_at(answer, name, "weather", 0, "id")  # the first condition is the primary one
    sky = answer["weather"][0].get("icon")
    day = isinstance(sky, str) and sky.endswith("d")
    kind, words = _condition(code, OPENWEATHERMAP, name)
    light = _light(answer.get("dt"), answer.get("sys"), day)
    celsius, place = _celsius(number_at(answer, name, "main", "temp"), name), answer.get("name")
    return Weather(kind, words, celsius, light, name, place if isinstance(place, str) else "")


def _read_open_meteo(answer: Mapping) -> Weather:
    name = NAMES[1]
    kind, words = _condition(number_at(answer, name, "current", "weather_code"), OPEN_METEO, name)
    daily = answer.get("daily")
    days = daily.items() if isinstance(daily, Mapping) else ()
    first = {key: values[0] for key, values in days if isinstance(values, list) and values}
    light = _light(answer["current"].get("time"), first, answer["current"].get("is_day") == 1)
    return Weather(kind, words, _celsius(number_at(answer, name, "current", "temperature_2m"), name), light, name)


def _condition(code: float, codes: Codes, name: str) -> tuple[str, str]:
    found = condition(int(code), codes) if code == int(code) else None
    if found is None:
        raise ValueError(f"{name} documents no weather code {code:g}.")
    return found


def _light(now: object, sun: object, day: bool) -> str:
    """Find the light from the times of sunrise and sunset; if the sun does neither, trust the answer's ``day``."""
    told = [now, *(sun.get(key) if isinstance(sun, Mapping) else None for key in ("sunrise", "sunset"))]
    times = [time for time in told if isinstance(time, (int, float)) and 0 < time < 1e11]
    if len(times) == 3 and times[1] != times[2]:
        return light_word(*times)
    return "day" if day else "night"


def _celsius(value: float, name: str) -> float:
    if not COLDEST <= value <= HOTTEST:
        raise ValueError(
            f"{name}'s temperature of {value:g} cannot be degrees Celsius near the ground; ask with units=metric."
        )
    return float(value)


def number_at(answer: object, name: str, *path: str | int) -> float:
    """Follow a path into an answer to a finite number, or raise ``ValueError`` that says where it is missing."""
    value: Any = answer
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:  # NaN is not
        raise ValueError(
            f"{name}'s answer has no number at {'.'.join(map(str, path))}; it may have changed its format."
        )
    return value
