"""From a weather service's numbers to words, and on to the few words that the offline model knows.

The codes are OpenWeatherMap's condition ids and, for Open-Meteo, those of the World Meteorological Organization (table
4677, as the service groups them). :func:`offline_table` shows every mapping to the offline vocabulary.
"""

from collections.abc import Mapping

Codes = Mapping[str, Mapping[str, tuple[int, ...]]]  # kind of weather -> words -> codes

OPENWEATHERMAP: Codes = {
    "storm": {"a thunderstorm": (200, 201, 210, 211, 221, 230, 231, 232), "a heavy thunderstorm": (202, 212)},
    "drizzle": {"light drizzle": (300, 310), "drizzle": (301, 311, 313, 321), "heavy drizzle": (302, 312, 314)},
    "rain": {
        "light rain": (500, 520), "rain": (501, 521, 531), "heavy rain": (502, 503, 504, 522), "freezing rain": (511,),
    },
    "snow": {
        "light snow": (600, 620), "snow": (601, 621), "heavy snow": (602, 622), "sleet": (611, 612, 613, 615, 616),
    },
    "fog": {"mist": (701,), "haze": (721,), "fog": (741,)},
    "dust": {
        "smoke": (711,), "whirling dust": (731,), "blowing sand": (751,), "dust": (761,), "volcanic ash": (762,),
    },
    "wind": {"squalls": (771,), "a tornado": (781,)},
    "clear": {"a clear sky": (800,)},
    "clouds": {
        "a few clouds": (801,), "scattered clouds": (802,), "broken clouds": (803,), "an overcast sky": (804,),
    },
}  # fmt: skip
OPEN_METEO: Codes = {
    "storm": {"a thunderstorm": (95,), "a thunderstorm with hail": (96, 99)},
    "drizzle": {"light drizzle": (51,), "drizzle": (53,), "heavy drizzle": (55,), "freezing drizzle": (56, 57)},
    "rain": {"light rain": (61, 80), "rain": (63, 81), "heavy rain": (65, 82), "freezing rain": (66, 67)},
    "snow": {"light snow": (71, 85), "snow": (73,), "heavy snow": (75, 86), "snow grains": (77,)},
    "fog": {"fog": (45,), "freezing fog": (48,)},
    "clear": {"a clear sky": (0,), "a mainly clear sky": (1,)},
    "clouds": {"scattered clouds": (2,), "an overcast sky": (3,)},
}
TEMPERATURES = (("freezing", 0), ("cold", 10), ("mild", 18), ("warm", 27), ("hot", float("inf")))  # below, in Celsius
LIGHTS = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night"}

# The offline world: a background for each kind of weather; a palette by the kind, else by the light, else by the
# temperature. No caption there speaks of night or rain, only of object, background, sun, palette and style.
BACKGROUNDS = {
    "storm": "sea", "drizzle": "hills", "rain": "sea", "snow": "plain", "fog": "hills", "dust": "plain", "wind": "sea",
    "clear": "field", "clouds": "hills",
}  # fmt: skip
PALETTE_BY_KIND = {
    "storm": "mono", "drizzle": "cool", "rain": "cool", "snow": "pastel", "fog": "mono", "dust": "earth",
    "wind": "mono",
}  # fmt: skip
PALETTE_BY_LIGHT = {"dawn": "pastel", "dusk": "warm", "night": "cool"}
PALETTE_BY_TEMPERATURE = {"freezing": "pastel", "cold": "cool", "mild": "earth", "warm": "vivid", "hot": "warm"}

TWILIGHT = 45 * 60  # seconds before and after sunrise that count as dawn; the same around sunset as dusk
_DAY = 24 * 60 * 60


def condition(code: int, codes: Codes) -> tuple[str, str] | None:
    """Find the kind of weather and the words for a service's code; None for a code it does not document.

    >>> condition(502, OPENWEATHERMAP)
    ('rain', 'heavy rain')
    """
    return next(
        ((kind, words) for kind, group in codes.items() for words, members in group.items() if code in members), None
    )


def temperature_word(celsius: float) -> str:
    """Name a temperature in degrees Celsius by :data:`TEMPERATURES`.

    >>> temperature_word(-0.5), temperature_word(10)
    ('freezing', 'mild')
    """
    return next(word for word, below in TEMPERATURES if celsius < below)


def light_word(now: float, sunrise: float, sunset: float) -> str:
    """Name the light at a time of day: ``"dawn"``, ``"day"``, ``"dusk"`` or ``"night"``; times in seconds.

    Only the hours count, not the dates, so yesterday's sunset will do.

    >>> light_word(now=12 * 3600, sunrise=6 * 3600, sunset=20 * 3600)
    'day'
    """
    length, since = (sunset - sunrise) % _DAY, (now - sunrise) % _DAY
    if min(since, _DAY - since) <= TWILIGHT:
        return "dawn"
    if abs(since - length) <= TWILIGHT:
        return "dusk"
    return "day" if since < length else "night"


def offline_words(kind: str, temperature: str, light: str) -> str:
    """Describe the weather in words that the offline model was trained on: background, sun, palette.

    >>> offline_words("clear", "warm", "day")
    'in a field under the sun, vivid colors'
    """
    from ..scenes.vocabulary import PLACES, SUN

    place = next(phrase for phrase in PLACES[BACKGROUNDS[kind]] if phrase)
    sun = f" {SUN[0]}" if kind == "clear" and light == "day" else ""
    palette = PALETTE_BY_KIND.get(kind) or PALETTE_BY_LIGHT.get(light) or PALETTE_BY_TEMPERATURE[temperature]
    return f"{place}{sun}, {palette} colors"


def offline_table() -> str:
    """Show as Markdown what each kind of weather becomes offline, by light and temperature where they matter."""
    rows = ["| weather | light | temperature | offline words |", "|---|---|---|---|"]
    for kind in BACKGROUNDS:
        if kind in PALETTE_BY_KIND:
            rows.append(f"| {kind} | any | any | {offline_words(kind, 'mild', 'night')} |")
            continue
        rows += [f"| {kind} | {light} | any | {offline_words(kind, 'mild', light)} |" for light in PALETTE_BY_LIGHT]
        rows += [f"| {kind} | day | {word} | {offline_words(kind, word, 'day')} |" for word, _ in TEMPERATURES]
    return "\n".join(rows)
