"""Weather: every code has words, every failure of a server ends in a sentence, only the server sees the key."""

import json
import logging
import math
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_diffusion.files import DATA
from context_diffusion.fusion import fuse_prompts, weather
from context_diffusion.fusion.client import MAX_BYTES, Patience, get_json
from context_diffusion.fusion.weather import Provider, WeatherSource, fetch_weather
from context_diffusion.fusion.weather_answers import read_weather
from context_diffusion.fusion.weather_words import (
    BACKGROUNDS,
    LIGHTS,
    OPEN_METEO,
    OPENWEATHERMAP,
    TEMPERATURES,
    condition,
    light_word,
    offline_table,
    offline_words,
    temperature_word,
)
from context_diffusion.scenes import words

KEY = "0123456789abcdef0123456789abcdef"
FAST = Patience(timeout=10, retries=2, backoff=0.01, longest=0.5)
HURRIED = Patience(timeout=0.4, retries=2, backoff=0.01)
HOUR = 3600

# As the two services document their codes.
OPENWEATHERMAP_CODES = [
    *(200, 201, 202, 210, 211, 212, 221, 230, 231, 232), *(300, 301, 302, 310, 311, 312, 313, 314, 321),
    *(500, 501, 502, 503, 504, 511, 520, 521, 522, 531), *(600, 601, 602, 611, 612, 613, 615, 616, 620, 621, 622),
    *(701, 711, 721, 731, 741, 751, 761, 762, 771, 781), *(800, 801, 802, 803, 804),
]  # fmt: skip
WMO_CODES = [
    *(0, 1, 2, 3, 45, 48, 51, 53, 55, 56, 57, 61, 63, 65, 66, 67, 71, 73, 75, 77, 80, 81, 82, 85, 86, 95, 96, 99)
]
GROUPS = {2: {"storm"}, 3: {"drizzle"}, 5: {"rain"}, 6: {"snow"}, 7: {"fog", "dust", "wind"}, 8: {"clear", "clouds"}}


def openweathermap(code=500, celsius=12.0, now=12 * HOUR, sunrise=6 * HOUR, sunset=18 * HOUR, icon="10d") -> dict:
    """An answer in OpenWeatherMap's format; times in seconds of some day."""
    day = 1_700_006_400
    return {
        "weather": [{"id": code, "main": "Rain", "description": "rain", "icon": icon}],
        "main": {"temp": celsius, "pressure": 1009},
        "dt": day + now,
        "sys": {"country": "IT", "sunrise": day + sunrise, "sunset": day + sunset},
        "name": "Zocca",
        "cod": 200,
    }


def open_meteo(code=61, celsius=12.0, now=12 * HOUR) -> dict:
    """An answer in Open-Meteo's format."""
    day = 1_700_006_400
    return {
        "current": {"time": day + now, "temperature_2m": celsius, "weather_code": code, "is_day": 1},
        "daily": {"time": [day], "sunrise": [day + 6 * HOUR], "sunset": [day + 18 * HOUR]},
    }


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", OPENWEATHERMAP_CODES)
def test_every_condition_of_openweathermap_becomes_words(code):
    seen = read_weather(openweathermap(code))
    assert seen.kind in GROUPS[code // 100]
    assert seen.condition
    assert set(seen.words("offline").replace(",", "").split()) <= set(words())


@pytest.mark.parametrize("code", WMO_CODES)
def test_every_code_of_open_meteo_becomes_words(code):
    assert set(read_weather(open_meteo(code)).words().replace(",", "").split()) <= set(words())


@pytest.mark.parametrize(("codes", "listed"), [(OPENWEATHERMAP, OPENWEATHERMAP_CODES), (OPEN_METEO, WMO_CODES)])
def test_the_tables_hold_each_documented_code_once_and_no_other(codes, listed):
    assert sorted(code for group in codes.values() for members in group.values() for code in members) == listed


def test_both_services_say_the_same_of_the_same_weather():
    for here, there in ((800, 0), (501, 63), (602, 75), (741, 45), (211, 95), (804, 3), (302, 55)):
        assert condition(here, OPENWEATHERMAP) == condition(there, OPEN_METEO)


@given(st.floats(-95, 65))
@settings(deadline=None)
def test_temperatures_fall_into_bands_that_rise_with_them(celsius):
    names = [name for name, _ in TEMPERATURES]
    warmer = math.nextafter(celsius + 5, math.inf)
    assert names.index(temperature_word(celsius)) <= names.index(temperature_word(warmer))
    edges = [-math.inf, *(edge for _, edge in TEMPERATURES)]
    at = names.index(temperature_word(celsius))
    assert edges[at] <= celsius < edges[at + 1]


@given(st.floats(0, 24), st.floats(2, 22), st.integers(-3, 3))
@settings(deadline=None)
def test_light_follows_the_sun_whatever_the_date(hour, length, days):
    found = light_word(hour * HOUR, 6 * HOUR, (6 + length + 24 * days) * HOUR)
    since = (hour - 6) % 24
    expected = "day" if since < length else "night"
    if min(since, 24 - since) <= 0.75:
        expected = "dawn"
    elif abs(since - length) <= 0.75:
        expected = "dusk"
    assert found == expected


def test_where_the_sun_does_not_set_the_icon_tells_day_from_night():
    for icon, light in (("01d", "day"), ("01n", "night")):
        answer = openweathermap(icon=icon)
        answer["sys"] = {"country": "NO", "sunrise": 0, "sunset": 0}
        assert read_weather(answer).light == light


def test_offline_words_show_weather_light_and_warmth():
    assert offline_words("clear", "warm", "day") == "in a field under the sun, vivid colors"
    assert "sun" not in offline_words("clear", "warm", "night")
    assert offline_words("rain", "warm", "day") != offline_words("clear", "warm", "day")
    assert offline_words("clouds", "cold", "day") != offline_words("clouds", "hot", "day")
    assert offline_words("clouds", "hot", "dusk") != offline_words("clouds", "hot", "night")


def test_the_table_shows_every_combination():
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in offline_table().splitlines()[2:]]
    for kind in BACKGROUNDS:
        for light in LIGHTS:
            for temperature, _ in TEMPERATURES:
                fits = [r for r in rows if r[0] == kind and r[1] in (light, "any") and r[2] in (temperature, "any")]
                assert [row[3] for row in fits] == [offline_words(kind, temperature, light)]


# --- recorded answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "offline", "plain"),
    [
        ("rain-at-dusk", "by the sea, cool colors", "heavy rain at dusk, cold weather"),
        ("clear-summer-day", "in a field under the sun, warm colors", "a clear sky by day, hot weather"),
        ("snow-at-night", "on a plain background, pastel colors", "snow at night, freezing weather"),
        ("fog-at-dawn", "among hills, mono colors", "fog at dawn, cold weather"),
    ],
)
def test_recorded_answers_work_without_a_network(name, offline, plain):
    file = DATA / "weather" / f"{name}.json"
    said = WeatherSource(recorded=file).describe()
    assert said.text == offline
    assert plain in said.notes[0]
    assert f"recorded in {name}.json" in said.source
    assert WeatherSource(recorded=str(file), vocabulary="open").describe().text == plain


def test_weather_and_a_caption_make_one_prompt():
    rain = WeatherSource(recorded=DATA / "weather" / "rain-at-dusk.json")
    fused = fuse_prompts(["a boat among hills, neon style", rain], [1, 2], max_tokens=32)
    assert fused.text == "by the sea, cool colors, a boat, neon style"


def test_every_file_of_data_weather_is_read():
    files = sorted((DATA / "weather").glob("*.json"))
    assert len(files) == 4
    assert all(read_weather(file).condition for file in files)


def changed(path, value) -> dict:
    """An answer with one field replaced, or taken out."""
    answer = openweathermap()
    inner = answer
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return answer


NONSENSE = {
    "empty": ({}, "no answer about the current weather.* this one has no fields"),
    "other": ({"cod": 200, "list": []}, "field 'weather'.* this one has cod, list"),
    "no weather": (changed(["weather"], []), "no number at weather.0.id"),
    "weather a string": (changed(["weather"], "rain"), "no number at weather.0.id"),
    "no temperature": (changed(["main", "temp"], None), "no number at main.temp"),
    "kelvin": (changed(["main", "temp"], 298.48), "298.48 cannot be degrees Celsius near the ground; ask with units"),
    "true": (changed(["main", "temp"], True), "no number at main.temp"),
    "infinite": (changed(["main", "temp"], math.inf), "no number at main.temp"),
    "unknown code": (changed(["weather", 0, "id"], 999), "documents no weather code 999"),
    "half a code": (changed(["weather", 0, "id"], 500.5), "documents no weather code 500.5"),
    "current a list": ({"current": [1]}, "no number at current.weather_code"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_of_the_wrong_shape_gets_a_sentence(name):
    answer, sentence = NONSENSE[name]
    with pytest.raises(ValueError, match=sentence):
        read_weather(answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([("weather",), ("main",), ("dt",), ("sys",), ("name",), ("main", "temp")]), json_values)
@settings(deadline=None)
def test_any_value_in_any_field_is_read_or_refused_in_a_sentence(path, value):
    answer = changed(path, 0)
    (answer["main"] if len(path) == 2 else answer)[path[-1]] = value
    try:
        assert read_weather(answer).light in LIGHTS
    except ValueError as error:
        assert "OpenWeatherMap" in str(error)


def test_a_missing_or_broken_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recorded answer"):
        WeatherSource(recorded=tmp_path / "none.json").describe()
    for text in ("", "<html>", "[1]", "[" * 100_000):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match="broken.json holds no JSON object"):
            read_weather(tmp_path / "broken.json")
    (tmp_path / "large.json").write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        read_weather(tmp_path / "large.json")


# --- a server that misbehaves ----------------------------------------------------------------------------


class Server:
    """A local service that gives the planned replies one after the other, the last one for ever."""

    def __init__(self):
        self.plan, self.asked = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                plan = outer.plan
                reply = plan.pop(0) if len(plan) > 1 else plan[0]
                reply(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/data"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def question(self, number: int = -1) -> dict:
        """What was asked, by name."""
        return {key: values[0] for key, values in parse_qs(urlsplit(self.asked[number]).query).items()}


def reply(status: int = 200, body: object = b"", **headers: str):
    """A whole reply; what is not bytes is sent as JSON."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()

    def send(handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(sent)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(sent)

    return send


def sleeps(handler) -> None:
    """No answer for a second."""
    time.sleep(1)


def drips(handler) -> None:
    """A body that never ends, a byte at a time."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass


def drips_headers(handler) -> None:
    """Headers that never end, each in time for the client's own timeout."""
    try:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for number in range(60):
            handler.wfile.write(b"X-%d: y\r\n" % number)
            time.sleep(0.05)
    except OSError:
        pass


def echoes(status: int, form: str = "{}", header: str = "X-Asked"):
    """An answer that says what it was asked, the key included, in the body, as a field's name and in a header."""

    def send(handler) -> None:
        key = form.format(parse_qs(urlsplit(handler.path).query)["appid"][0])
        body = json.dumps({"message": "x" * 100 + f" {key} is asked for", key: key}).encode()
        reply(status, body, **{header: f"http://other/?appid={key}"})(handler)

    return send


def breaks_off(handler) -> None:
    """A body shorter than announced."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"weather"')


@pytest.fixture
def server(monkeypatch):
    server = Server()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENWEATHER_API_KEY", KEY)
    monkeypatch.setitem(weather.PROVIDERS, "openweathermap", Provider("OpenWeatherMap", server.url))
    monkeypatch.setitem(weather.PROVIDERS, "open-meteo", Provider("Open-Meteo", server.url, server.url + "/places"))
    yield server
    server.http.shutdown()
    server.http.server_close()


def ask(patience=FAST) -> str:
    return WeatherSource("Zocca", patience=patience).describe().text


def test_a_good_answer_is_asked_for_once_with_the_key(server):
    server.plan = [reply(body=openweathermap(800, 22.0))]
    source = WeatherSource("Zocca,IT", patience=FAST)
    said = source.describe()
    assert said.text == "in a field under the sun, vivid colors"
    assert said.source == "weather in Zocca (OpenWeatherMap, now)"
    assert len(server.asked) == 1
    assert server.question() == {"q": "Zocca,IT", "units": "metric", "appid": KEY}
    assert KEY not in repr(source) + repr(said)
    fetch_weather((44.34, 10.99), patience=FAST)
    assert server.question() == {"lat": "44.34", "lon": "10.99", "units": "metric", "appid": KEY}


def test_open_meteo_is_asked_without_a_key_first_where_the_place_is(server, monkeypatch):
    monkeypatch.delenv("OPENWEATHER_API_KEY")
    where = {"results": [{"latitude": 44.34, "longitude": 10.99, "name": "Zocca"}]}
    server.plan = [reply(body=where), reply(body=open_meteo(61))]
    said = WeatherSource("Zocca", provider="open-meteo", patience=FAST).describe()
    assert said.text == "by the sea, cool colors"
    assert said.source == "weather in Zocca (Open-Meteo, now)"
    assert server.question(0) == {"name": "Zocca", "count": "1"}
    asked = server.question(1)
    assert (asked["latitude"], asked["longitude"], asked["timeformat"]) == ("44.34", "10.99", "unixtime")
    assert "appid" not in asked
    server.plan = [reply(body={"generationtime_ms": 0.5})]
    with pytest.raises(ValueError, match="Open-Meteo knows no place 'Atlantis'"):
        fetch_weather("Atlantis", "open-meteo", FAST)


def test_a_country_or_a_state_chooses_among_places_of_one_name(server):
    places = [
        {"latitude": 38.7, "longitude": -9.1, "country_code": "PT", "country": "Portugal", "admin1": "Lisbon"},
        {"latitude": 40.8, "longitude": -80.8, "country_code": "US", "country": "United States", "admin1": "Ohio"},
    ]
    for asked, latitude in (("Lisbon,PT", 38.7), ("Lisbon, us", 40.8), ("Lisbon,Ohio,US", 40.8), ("Lisbon,", 38.7)):
        server.plan = [reply(body={"results": places}), reply(body=open_meteo())]
        fetch_weather(asked, "open-meteo", FAST)
        assert server.question(-2)["name"] == "Lisbon" and float(server.question(-1)["latitude"]) == latitude
    server.plan = [reply(body={"results": places})]
    with pytest.raises(ValueError, match="knows no place 'Lisbon,FR'"):
        fetch_weather("Lisbon,FR", "open-meteo", FAST)


HTML = b"<html><body>Log in to the hotel's network</body></html>"
UNKNOWN = {"cod": "404", "message": "city not found"}
TOO_OFTEN = {"cod": 429, "message": "Your account is temporarily blocked"}
REFUSED = {"cod": 401, "message": f"Invalid API key {KEY}."}
FAILURES = {  # reply, error, sentence, how often it is asked for
    "slow": (sleeps, TimeoutError, "gave no answer within 0.4 s; a recorded answer works", 3),
    "dripping": (drips, TimeoutError, "gave no answer within 0.4 s", 3),
    "dripping headers": (drips_headers, TimeoutError, "gave no answer within 0.4 s", 3),
    "echo": (echoes(200), ValueError, r"has message, \(key\)", 1),
    "echo of a refusal": (echoes(404), ValueError, r"x \(key\) is as", 1),
    "echo of a ban": (echoes(403, "{}"), PermissionError, r"x \(key\) is as", 1),
    "echo and elsewhere": (echoes(302, header="Location"), ConnectionError, r"status 302", 1),
    "echo as text": (reply(200, b"<p>" + b"x" * 30 + KEY.encode()), ValueError, r"starts with '<p>x+\(key\)?'", 1),
    "huge numbers": (reply(200, b'{"weather": [{"id": 1%s}]}' % (b"0" * 4000)), ValueError, "no number", 1),
    "broken off": (breaks_off, ConnectionError, "cannot be reached or broke off", 3),
    "500": (reply(500), ConnectionError, r"out of order \(status 500\) \(3 attempts\)\.", 3),
    "503": (reply(503, HTML), ConnectionError, "out of order", 3),
    "moved": (reply(301, Location="http://127.0.0.1:1/"), ConnectionError, r"out of order \(status 301\)", 1),
    "401": (reply(401, REFUSED), PermissionError, r"refuses the key .*'Invalid API key \(key\)'", 1),
    "403": (reply(403), PermissionError, "refuses the key", 1),
    "404": (reply(404, UNKNOWN), ValueError, "does not know .* 'city not found'", 1),
    "429": (reply(429, TOO_OFTEN), ConnectionError, "asked too often .*temporarily blocked", 3),
    "429 for an hour": (reply(429, TOO_OFTEN, Retry_After="3600"), ConnectionError, "wants 3600 s of rest", 1),
    "429 till a date": (reply(429, Retry_After="Fri, 31 Dec 2100 12:00:00 GMT"), ConnectionError, r"wants \d{9,} s", 1),
    "429 till whenever": (reply(429, Retry_After="soon"), ConnectionError, "asked too often", 3),
    "html": (reply(200, HTML), ValueError, "something other than a JSON object; it starts with .<html>", 1),
    "empty": (reply(200, b""), ValueError, "something other than a JSON object", 1),
    "list": (reply(200, [1, 2]), ValueError, "something other than a JSON object", 1),
    "not a number": (reply(200, b'{"weather": NaN}'), ValueError, "something other than a JSON object", 1),
    "deep": (reply(200, b"[" * 100_000), ValueError, "something other than a JSON object", 1),
    "binary": (reply(200, bytes(range(256))), ValueError, "something other than a JSON object", 1),
    "endless": (reply(200, b" " * (MAX_BYTES + 1)), ValueError, "more than 1,000,000 bytes", 1),
    "wrong shape": (reply(200, {"weather": 7}), ValueError, "no number at weather.0.id", 1),
    "not gzip": (reply(200, b"{}", Content_Encoding="gzip"), ConnectionError, "cannot be asked", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_of_a_server_ends_in_one_sentence_without_the_key(server, caplog, name):
    caplog.set_level(logging.DEBUG)
    answer, error, sentence, times = FAILURES[name]
    server.plan = [answer]
    with pytest.raises(error, match=sentence) as caught:
        ask(HURRIED if error is TimeoutError else FAST)
    assert len(server.asked) == times
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert "OpenWeatherMap" in str(caught.value)
    assert KEY not in shown
    assert caught.value.__context__ is None
    assert KEY in server.asked[0]


def test_a_good_answer_after_two_broken_ones_is_taken(server):
    server.plan = [reply(500), breaks_off, reply(body=openweathermap(501))]
    assert ask() == "by the sea, cool colors"
    assert len(server.asked) == 3


def test_a_short_rest_that_the_server_asks_for_is_kept(server):
    server.plan = [reply(429, Retry_After="1"), reply(body=openweathermap(501))]
    start = time.monotonic()
    WeatherSource("Zocca", patience=Patience(timeout=5, retries=1, backoff=0, longest=2)).describe()
    assert 1 <= time.monotonic() - start < 5


def test_waits_double_and_no_attempt_follows_the_last(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.plan = [reply(502)]
    with pytest.raises(ConnectionError, match="4 attempts"):
        get_json("A service", server.url, {}, patience=Patience(timeout=5, retries=3, backoff=0.5))
    assert waits == [0.5, 1.0, 2.0]


def test_a_server_that_is_not_there_is_named(server, caplog):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(
        ConnectionError, match=r"OpenWeatherMap cannot be reached.*ConnectError.* \(3 attempts\)"
    ) as caught:
        ask()
    assert KEY not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_the_log_keeps_the_address_and_loses_the_key(server, caplog):
    caplog.set_level(logging.INFO)
    server.plan = [reply(body=openweathermap())]
    ask()
    assert "appid=(key)" in caplog.text
    assert KEY not in caplog.text
    assert not logging.getLogger("httpx").filters


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("", "set the environment variable OPENWEATHER_API_KEY"), ("  ", "open-meteo"), ("secret\nX: 1", "holds no key")],
)
def test_a_missing_or_impossible_key_is_reported_before_any_request(server, monkeypatch, key, sentence):
    monkeypatch.setenv("OPENWEATHER_API_KEY", key)
    with pytest.raises(ValueError, match=sentence) as caught:
        ask()
    assert "secret" not in str(caught.value)
    assert not server.asked


@pytest.mark.parametrize("place", ["", " ", "x" * 101, (91.0, 0.0), (0.0, 181.0), (math.nan, 0.0)])
def test_an_invalid_place_is_refused(place):
    with pytest.raises(ValueError, match=r"\(latitude, longitude\)"):
        WeatherSource(place)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="one of the two"):
        WeatherSource()
    with pytest.raises(ValueError, match="one of the two"):
        WeatherSource("Zocca", recorded="x.json")
    with pytest.raises(ValueError, match="no weather provider 'yahoo'; take 'openweathermap' or 'open-meteo'"):
        WeatherSource("Zocca", provider="yahoo")
    with pytest.raises(ValueError, match="between 0 and 600"):
        Patience(timeout=0)
    with pytest.raises(ValueError, match="from 0 to 20"):
        Patience(retries=21)


def test_a_name_of_a_place_cannot_change_the_question(server):
    server.plan = [reply(body=openweathermap())]
    WeatherSource("Rome&appid=x#/../é", patience=FAST).describe()
    assert server.question() == {"q": "Rome&appid=x#/../é", "units": "metric", "appid": KEY}
    assert Path(urlsplit(server.asked[0]).path) == Path("/data")
