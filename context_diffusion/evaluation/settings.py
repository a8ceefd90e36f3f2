"""The three settings of Context Diffusion: contexts and prompt (C+P), contexts alone (C), prompt alone (P).

The query is there in all three; what is measured is whether the picture shows its object, has the contexts' palette,
and keeps the query's edges. The prompt names the style too, so that P is a fair rival.
"""

from ..metrics import edge_f1, palette_distance, palette_of
from ..scenes import OBJECTS, STYLES
from .bench import Bench
from .drawing import Order
from .judge import accuracy
from .layout import THRESHOLDS
from .report import Report
from .sheets import labelled_sheet
from .unseen import SETTINGS, content, query, unseen_group

CONTEXTS = 3


def setting_orders(prompt: str, contexts: tuple, query_image: object, seed: int) -> dict[str, Order]:
    """Build the orders of the three settings from the same inputs and seed."""
    return {
        "C+P": Order(prompt, contexts, query_image, "canny", seed),
        "C": Order("", contexts, query_image, "canny", seed),
        "P": Order(prompt, (), query_image, "canny", seed),
    }


def run(bench: Bench) -> Report:
    """Nine numbers: three settings, each with object accuracy, style distance and edge F1."""
    bench.part("controlnet-canny")
    count = bench.count(40, 4)
    styles = [STYLES[i % len(STYLES)] for i in range(count)]
    queries = [query(SETTINGS + i, i, object=OBJECTS[i % len(OBJECTS)]) for i in range(count)]
    groups = [unseen_group(SETTINGS + count + i, style, CONTEXTS) for i, style in enumerate(styles)]
    contexts = [tuple(one.image for one in group) for group in groups]
    asked = [
        setting_orders(f"{content(queries[i].scene)}, {styles[i]} style", contexts[i], queries[i].image, i)
        for i in range(count)
    ]
    palettes = [palette_of(list(images)) for images in contexts]
    report = Report(notes=[
        "style distance: earth mover's distance of the picture's palette from its contexts', in Delta E (Lab); one "
        "query with its contexts is one unit",
    ])  # fmt: skip
    rows = {"query": [one.image for one in queries], "a context": [images[0] for images in contexts]}
    for setting in asked[0]:
        pictures = bench.draw([orders[setting] for orders in asked], setting)
        seen = bench.judge(pictures)["object"]
        report.add(f"{setting}: object accuracy", accuracy(seen, [OBJECTS.index(one.scene.object) for one in queries]))
        report.add(f"{setting}: style distance", palette_distance(pictures, palettes))
        targets = [one.image for one in queries]
        report.add(f"{setting}: edge F1", edge_f1(pictures, targets, thresholds=THRESHOLDS))
        rows[setting] = pictures
    report.sheets["pictures"] = labelled_sheet({key: row[:10] for key, row in rows.items()}, styles[:10])
    return report
