"""Context Diffusion's protocol (Najdenkoska et al. 2023, Tables 1 to 3): three settings, one and three contexts.

C+P gets contexts and a prompt, C contexts alone, P a prompt alone; all three get the query. In domain, the query is an
unseen scene; out of domain, a photograph or a drawing made by hand. The contexts are scenes of one style draw, and the
prompt names that style too, so that P is a fair rival.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.metrics import palette_distances, palette_of
from context_diffusion.scenes import OBJECTS, STYLES
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench
from ..claims import Claim, decide
from ..domain import drawings, photographs
from ..edges_and_depth import edges_kept
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..tables import Table, published
from ..units import carry_out
from ..unseen import DOMAIN, SETTINGS, query, unseen_group
from .scorers import Scorers, drawn_by

SHOTS = (1, 3)  # contexts
IN, OUT = "in domain", "out of domain"
SCORES = ("palette distance", "style", "edge F1", "object")


@dataclass(frozen=True)
class Case:
    """A query, its contexts, and what the prompt says."""

    query: Image.Image
    contexts: tuple[Image.Image, ...]
    prompt: str
    thing: str  # what the judge should see; "" where it has no class for it
    style: str


def run(bench: Bench) -> Report | None:
    """Draw and score forty queries in domain, and those from outside, in every setting."""
    return carry_out(ContextSettings(bench, count=bench.first(40, 8)), bench.work)


class ContextSettings:
    """Cases x settings; raises ``FileNotFoundError`` for a model without a Canny ControlNet or without contexts."""

    name = "settings"

    def __init__(self, bench: Bench, *, count: int, seeds: int = 2) -> None:
        bench.need("controlnet-canny", "context_projector or ip-adapter")
        self.bench, self.count, self.seeds, self.scorers = bench, count, seeds, Scorers(bench, "judge")
        self.outside = min(count, len(outside_queries()))

    def about(self) -> dict:
        """The model and the settings."""
        return {
            **drawn_by(self.bench, "image_encoder", "context_projector", "ip-adapter", "controlnet-canny"),
            "shots": list(SHOTS),
            "control": self.bench.row.control_scale,
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every case in every setting; the few queries out of domain are drawn with several seeds."""
        inside = [Unit(s, i) for i in range(self.count) for s in names(IN)]
        outside = range(self.outside)
        return inside + [Unit(s, i, seed) for i in outside for seed in range(self.seeds) for s in names(OUT)]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw one picture."""
        setting, domain, shots = parsed(unit.setting)
        case = case_of(domain, unit.index)
        seed = unit.index if domain == IN else unit.seed
        prompt = "" if setting == "C" else case.prompt
        request = Request(case.query, case.contexts[:shots], prompt, layout="canny", seed=seed)
        return self.bench.draw([request], progress=False)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score one picture against its query, contexts and prompt."""
        _, domain, _ = parsed(unit.setting)
        case = case_of(domain, unit.index)
        own = palette_of(list(case.contexts))
        scores = {
            "palette distance": palette_distances(pictures, own).tolist(),
            "edge F1": edges_kept(pictures, [case.query]).tolist(),
        }
        if "judge" in self.scorers.networks:
            seen = self.scorers.networks["judge"](pictures)
            scores["style"] = [float(seen["style"][0] == STYLES.index(case.style))]
            if case.thing:
                scores["object"] = [float(seen["object"][0] == OBJECTS.index(case.thing))]
        return scores

    def report(self, results: Results) -> Report:
        """The table, the claims, and a sheet of each domain."""
        rows = {setting: results.estimates(setting, SCORES) for domain in (IN, OUT) for setting in names(domain)}
        report = Report(notes=[
            f"{self.count} unseen queries, and {self.outside} from elsewhere x {self.seeds} seeds; the query "
            f"is the unit; palette distance: of the picture from its three contexts; {self.bench.steps} steps",
            *self.scorers.notes(),
        ])  # fmt: skip
        report.add_table("scores", Table("Context Diffusion", rows, published("settings"), ("palette distance",)))
        report.claims = [claim for domain in (IN, OUT) for claim in claims(results, domain)]
        for domain, key, count in ((IN, "inside", self.count), (OUT, "outside", self.outside)):
            report.sheets[key] = sheet(results, domain, min(count, 10))
        return report


def names(domain: str) -> list[str]:
    """The settings of a domain.

    >>> names("in domain")[:2]
    ['C+P, 1 context, in domain', 'C, 1 context, in domain']
    """
    shots = [f"{s}, {n} context{'s' * (n > 1)}, {domain}" for n in SHOTS for s in ("C+P", "C")]
    return [*shots, f"P, {domain}"]


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


def claims(results: Results, domain: str) -> list[Claim]:
    """The paper's orderings in one domain, as paired differences."""
    both, alone, prompt = f"C+P, 3 contexts, {domain}", f"C, 3 contexts, {domain}", f"P, {domain}"
    one = f"C+P, 1 context, {domain}"
    asked = [
        ("contexts and prompt pass on more palette than the prompt", both, prompt, "palette distance", "below"),
        ("contexts alone pass on more palette than the prompt", alone, prompt, "palette distance", "below"),
        ("contexts and prompt draw more objects than contexts alone", both, alone, "object", "above"),
        ("contexts added to the prompt cost no object", both, prompt, "object", "not below"),
        ("contexts added to the prompt cost no edges", both, prompt, "edge F1", "not below"),
        ("three contexts pass on more palette than one", both, one, "palette distance", "below"),
    ]
    return decide(results, [(f"{domain}: {text}", *rest) for text, *rest in asked])


def sheet(results: Results, domain: str, count: int) -> Image.Image:
    """Show the first queries of a domain, a context of each, and the picture of seed 0 in every setting."""
    shown = range(count)
    rows = {
        "query": [case_of(domain, i).query for i in shown],
        "a context": [case_of(domain, i).contexts[0] for i in shown],
    }
    for setting in names(domain):
        label = setting.removesuffix(f", {domain}").replace(", ", ",\n")
        rows[label] = [results.pictures(Unit(setting, i))[0] for i in shown]
    return labelled_sheet(rows, [case_of(domain, i).style for i in shown], cell=96)
