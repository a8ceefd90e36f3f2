"""Context Diffusion's protocol (Najdenkoska et al. 2023, Tables 1 to 3): three settings, one and three contexts.

C+P gets contexts and a prompt, C contexts alone, P a prompt alone; all three get the query. In domain, the query is an
unseen scene; out of domain, a photograph or a drawing made by hand. The contexts are scenes of one style draw, and the
prompt names that style too, so that P is a fair rival.

Of pictures of one's own (``--references``) each is a query, with its caption as the prompt; the contexts are the next
pictures whose captions name the same style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import shorten

from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.images import resize
from context_diffusion.metrics import palette_distances, palette_of
from context_diffusion.scenes import OBJECTS, STYLES
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench, foreign
from ..claims import Claim, decide
from ..domain import drawings, photographs
from ..edges_and_depth import edges_kept
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..styles.tasks import Folder
from ..tables import Table, published
from ..units import carry_out
from ..unseen import DOMAIN, SETTINGS, query, unseen_group
from .scorers import Scorers, drawn_by

SHOTS = (1, 3)  # contexts
WORDS = {1: "context", 2: "two contexts", 3: "three contexts"}
IN, OUT, OWN = "in domain", "out of domain", "own pictures"
SHEETS = {IN: "inside", OUT: "outside", OWN: "own"}
SCORES = ("palette distance", "style", "edge F1", "object")


@dataclass(frozen=True)
class Case:
    """A query, its contexts, and what the prompt says."""

    query: Image.Image
    contexts: tuple[Image.Image, ...]
    prompt: str
    thing: str = ""  # what the judge should see; "" where it has no class for it
    style: str = ""  # likewise


def run(bench: Bench) -> Report | None:
    """Draw and score forty queries in domain and those from outside, or those of a folder, in every setting."""
    return carry_out(ContextSettings(bench, count=bench.first(40, 8)), bench.work, foreign(bench))


class UnseenCases:
    """Unseen queries, and those from elsewhere with several seeds; ``counts`` has cases and seeds of each domain."""

    shots = SHOTS

    def __init__(self, count: int, seeds: int) -> None:
        self.counts = {IN: (count, 1), OUT: (min(count, len(outside_queries())), seeds)}
        self.case = case_of

    def about(self) -> list[object]:
        """What the pictures of each case depend on: nothing but its number."""
        return []

    def note(self) -> str:
        """What was asked, in a line of the report."""
        (inside, _), (outside, seeds) = self.counts[IN], self.counts[OUT]
        return f"{inside} unseen queries, and {outside} from elsewhere x {seeds} seeds"

    def title(self, domain: str, index: int) -> str:
        """What stands above the pictures of a case on a sheet."""
        return case_of(domain, index).style


class OwnCases:
    """Each picture of a folder as the query, with others of its style as contexts; raises as :class:`Folder` does."""

    def __init__(self, folder: str | Path, limit: int | None = None, seeds: int = 1) -> None:
        self.folder = Folder(folder)
        among = self.folder.count
        styles = [self.folder.said(index)[1] for index in range(among)]
        self.others = [[j for j in self.folder.others(i) if styles[j] == styles[i]] for i in range(among)]
        for name, style, others in zip(self.folder.names, styles, self.others, strict=True):
            if not others:
                raise ValueError(
                    "settings takes contexts from the other pictures of a style, which a caption names after its last "
                    f"comma; {name} is the only one {f'in {style!r}' if style else 'that names none'}."
                )
        self.shots = tuple(sorted({1, min(max(SHOTS), *map(len, self.others))}))
        self.counts = {OWN: (min(among, limit or among), seeds)}
        self.case = lru_cache(maxsize=16)(self._case)

    def about(self) -> list[object]:
        """What the pictures of each case depend on: the files of query and contexts, and their captions."""
        return [[self.folder.mark(one) for one in (i, *self.contexts(i))] for i in range(self.counts[OWN][0])]

    def note(self) -> str:
        """What was asked, in a line of the report."""
        count, seeds = self.counts[OWN]
        return f"queries of {self.folder.folder.name}: {', '.join(self.folder.names[:count])}, {seeds} seeds each"

    def title(self, domain: str, index: int) -> str:
        """What stands above the pictures of a case on a sheet."""
        return self.folder.said(index)[0]

    def contexts(self, index: int) -> list[int]:
        """The pictures that are the contexts of another."""
        return self.others[index][: max(self.shots)]

    def _case(self, domain: str, index: int) -> Case:
        contexts = tuple(map(self.folder.image, self.contexts(index)))
        return Case(self.folder.image(index), contexts, self.folder.captions[index])


OWN_PICTURES = OwnCases


class ContextSettings:
    """Cases x settings; raises ``FileNotFoundError`` for a model without a Canny ControlNet or without contexts."""

    name = "settings"

    def __init__(self, bench: Bench, *, count: int, seeds: int = 2) -> None:
        bench.need("controlnet-canny", "context_projector or ip-adapter")
        self.bench, self.scorers = bench, Scorers(bench, "judge")
        own = bench.references
        self.cases = OwnCases(own, bench.limit, seeds) if own else UnseenCases(count, seeds)

    def about(self) -> dict:
        """The model, the settings, the pictures."""
        return {
            **drawn_by(self.bench, "image_encoder", "context_projector", "ip-adapter", "controlnet-canny"),
            "shots": list(SHOTS),
            "control": self.bench.row.control_scale,
            "sets": self.cases.about(),
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every case in every setting; the few queries out of domain are drawn with several seeds."""
        return [
            Unit(setting, index, seed)
            for domain, (count, seeds) in self.cases.counts.items()
            for index in range(count)
            for seed in range(seeds)
            for setting in names(domain, self.cases.shots)
        ]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw one picture."""
        setting, domain, shots = parsed(unit.setting)
        case = self.cases.case(domain, unit.index)
        seed = unit.index if domain == IN else unit.seed
        prompt = "" if setting == "C" else case.prompt
        request = Request(case.query, case.contexts[:shots], prompt, layout="canny", seed=seed)
        return self.bench.draw([request], progress=False)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score one picture against its query, contexts and prompt."""
        _, domain, _ = parsed(unit.setting)
        case = self.cases.case(domain, unit.index)
        own = palette_of(list(case.contexts))
        shown = resize(case.query, pictures[0].size) if domain == OWN else case.query  # cropped as its map is
        scores = {
            "palette distance": palette_distances(pictures, own).tolist(),
            "edge F1": edges_kept(pictures, [shown]).tolist(),
        }
        if "judge" in self.scorers.networks and case.style:
            seen = self.scorers.networks["judge"](pictures)
            scores["style"] = [float(seen["style"][0] == STYLES.index(case.style))]
            if case.thing:
                scores["object"] = [float(seen["object"][0] == OBJECTS.index(case.thing))]
        return scores

    def report(self, results: Results) -> Report:
        """The table, the claims, and a sheet of each domain."""
        shots = self.cases.shots
        settings = [setting for domain in self.cases.counts for setting in names(domain, shots)]
        rows = {setting: results.estimates(setting, SCORES) for setting in settings}
        report = Report(notes=[
            f"{self.cases.note()}; the query "
            f"is the unit; palette distance: of the picture from its {WORDS[max(shots)]}; {self.bench.steps} steps",
            *self.scorers.notes(),
        ])  # fmt: skip
        report.add_table("scores", Table("Context Diffusion", rows, published("settings"), ("palette distance",)))
        report.claims = [claim for domain in self.cases.counts for claim in claims(results, domain, max(shots))]
        for domain in self.cases.counts:
            report.sheets[SHEETS[domain]] = self.sheet(results, domain)
        return report

    def sheet(self, results: Results, domain: str) -> Image.Image:
        """Show the first queries of a domain, a context of each, and the picture of seed 0 in every setting."""
        shown = range(min(self.cases.counts[domain][0], 10))
        cases = [self.cases.case(domain, i) for i in shown]
        rows = {"query": [case.query for case in cases], "a context": [case.contexts[0] for case in cases]}
        for setting in names(domain, self.cases.shots):
            label = setting.removesuffix(f", {domain}").replace(", ", ",\n")
            rows[label] = [results.pictures(Unit(setting, i))[0] for i in shown]
        titles = [shorten(self.cases.title(domain, i), 14, placeholder=" ...") for i in shown]
        return labelled_sheet(rows, titles, cell=96)


def names(domain: str, shots: Sequence[int] = SHOTS) -> list[str]:
    """The settings of a domain.

    >>> names("in domain")[:2]
    ['C+P, 1 context, in domain', 'C, 1 context, in domain']
    """
    return [*(named(setting, n, domain) for n in shots for setting in ("C+P", "C")), f"P, {domain}"]


def named(setting: str, shots: int, domain: str) -> str:
    """The name of a setting with contexts."""
    return f"{setting}, {shots} context{'s' * (shots > 1)}, {domain}"


def parsed(name: str) -> tuple[str, str, int]:
    """Take a name apart: setting, domain, number of contexts."""
    setting, *shots, domain = name.split(", ")
    return setting, domain, int(shots[0].split()[0]) if shots else 0


@lru_cache(maxsize=1)
def outside_queries() -> tuple:
    """Photographs and drawings."""
    return (*photographs(), *drawings())


@lru_cache(maxsize=128)
def case_of(domain: str, index: int) -> Case:
    """Draw or read the case of a number, with the ten styles in turn."""
    style = STYLES[index % len(STYLES)]
    if domain == IN:
        drawn = query(SETTINGS + index, index, object=OBJECTS[index % len(OBJECTS)])
        group, image, thing = unseen_group(SETTINGS + 5000 + index, style, max(SHOTS)), drawn.image, drawn.scene.object
        prompt = f"{article(thing)}, {style} style"
    else:
        one = outside_queries()[index]
        group, image = unseen_group(DOMAIN + 5000 + index, style, max(SHOTS)), one.image
        thing = one.prompt.split()[-1] if one.prompt else ""
        prompt = f"{one.prompt}, {style} style" if one.prompt else f"{style} style"
    return Case(image, tuple(member.image for member in group), prompt, thing, style)


def claims(results: Results, domain: str, most: int = max(SHOTS)) -> list[Claim]:
    """The paper's orderings in one domain, with ``most`` contexts, as paired differences."""
    both, alone, prompt = named("C+P", most, domain), named("C", most, domain), f"P, {domain}"
    one = named("C+P", 1, domain)
    asked = [
        ("contexts and prompt pass on more palette than the prompt", both, prompt, "palette distance", "below"),
        ("contexts alone pass on more palette than the prompt", alone, prompt, "palette distance", "below"),
        ("contexts and prompt draw more objects than contexts alone", both, alone, "object", "above"),
        ("contexts added to the prompt cost no object", both, prompt, "object", "not below"),
        ("contexts added to the prompt cost no edges", both, prompt, "edge F1", "not below"),
    ]
    if most > 1:
        asked.append((f"{WORDS[most]} pass on more palette than one", both, one, "palette distance", "below"))
    return decide(results, [(f"{domain}: {text}", *rest) for text, *rest in asked])
