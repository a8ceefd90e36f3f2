"""The widgets of an executed notebook as still pictures: their dials as the lesson sets them, and what they drew."""

import html
import re

import nbformat

VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
NOTE = "Still: run the lesson to turn these."
Models = dict[str, dict]


def with_still_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each widget among the outputs by its dials in HTML, followed by the outputs that it holds."""
    models: Models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [still for output in cell.outputs for still in still_output(output, models)]
    return notebook


def still_output(output: nbformat.NotebookNode, models: Models) -> list[nbformat.NotebookNode]:
    """What stands for an output: dials for a widget, its text where nothing is known of it, nothing once hidden."""
    view = output.get("data", {}).pop(VIEW, None)
    if view is None:
        return [output]
    if hidden(models.get(view["model_id"]), models):  # such as a progress bar that has done its work
        return []
    found = parts(view["model_id"], models)
    dials = "".join(dial(model["model_name"], model["state"], models) for model in found)
    held = [nbformat.from_dict(one) for model in found for one in model["state"].get("outputs", ())]
    if dials:
        text = f'<div class="dials">{dials}<p>{NOTE}</p></div>'
        held.insert(0, nbformat.v4.new_output("display_data", {"text/html": text}))
    return held or [output]


def parts(name: str, models: Models) -> list[dict]:
    """The widgets that a widget consists of, boxes opened, those that are not shown left out."""
    model = models.get(name.removeprefix("IPY_MODEL_"))
    if model is None or hidden(model, models):
        return []
    children = model["state"].get("children")
    return [model] if children is None else [one for child in children for one in parts(child, models)]


def hidden(model: dict | None, models: Models) -> bool:
    """Whether a widget's own layout hides it."""
    layout = _part(model["state"].get("layout"), models) if model else {}
    return layout.get("display") == "none" or layout.get("visibility") == "hidden"


def dial(kind: str, state: dict, models: Models) -> str:
    """One control in HTML, disabled; nothing for one that only holds outputs."""
    name, value = html.escape(str(state.get("description") or "")), state.get("value")
    shown = html.escape(str(value))
    match kind.removesuffix("Model"):
        case "IntSlider" | "FloatSlider":
            ends = " ".join(f'{key}="{state[key]}"' for key in ("min", "max", "step"))
            number = f"{value:g}" if isinstance(value, float) else shown
            control = (
                f'<input type="range" {ends} value="{value}" disabled aria-label="{name}"><output>{number}</output>'
            )
        case "Dropdown" | "Select" | "RadioButtons" | "ToggleButtons":
            labels, index = state.get("_options_labels", ()), state.get("index")
            chosen = html.escape(str(labels[index])) if index is not None else ""
            control = f'<select disabled aria-label="{name}"><option>{chosen}</option></select>'
        case "Checkbox":
            control = f'<input type="checkbox" disabled aria-label="{name}"{" checked" if value else ""}>'
        case "Text" | "Textarea" | "IntText" | "FloatText":
            control = f'<input type="text" value="{shown}" disabled aria-label="{name}">'
        case "Button" | "FileUpload":
            name, control = "", f'<button type="button" disabled>{name or "choose"}</button>'
        case "HTML":  # such as the recorder's button, whose script would find nothing here
            control = f'<button type="button" disabled>{html.escape(re.sub("<[^>]*>", "", str(value)))}</button>'
        case "Label":
            control = f"<span>{shown}</span>"
        case _:
            return ""
    return f"<div><label>{name}</label>{control}</div>" if name else f"<div>{control}</div>"


def _part(reference: str | None, models: Models) -> dict:
    return models.get((reference or "").removeprefix("IPY_MODEL_"), {}).get("state", {})
