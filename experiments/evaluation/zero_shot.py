"""Zero-shot classification by CLIP: which of "a house", "a tree", ... and of "flat style", ... is nearest."""

from context_diffusion.metrics import reference_scores
from context_diffusion.scenes import OBJECTS, STYLES, labels
from context_diffusion.scenes.vocabulary import article

from .accuracy import accuracy
from .bench import Bench
from .report import Report
from .unseen import sample


def run(bench: Bench) -> Report:
    """Object and style accuracy on 500 unseen scenes."""
    encoder, drawn = bench.clip, sample(bench.count(500, 40))
    known = [labels(one) for one in drawn]
    prompts = {"object": [article(name) for name in OBJECTS], "style": [f"{name} style" for name in STYLES]}
    report = Report(notes=['prompts: "a boat", "neon style"; one picture is one unit'])
    for head, texts in prompts.items():
        cosines = reference_scores([one.image for one in drawn], encoder.encode_text(texts), encoder.encode_images)
        wanted = [row[head] for row in known]
        report.add(f"zero-shot {head} accuracy", accuracy(cosines.argmax(axis=1), wanted), at_least=0.97)
    return report
