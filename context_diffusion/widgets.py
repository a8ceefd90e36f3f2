"""Parameters to play with in a notebook; without a kernel, a still figure at their starting values."""

import inspect
import sys
from collections.abc import Callable

from .signatures import checked

Control = tuple | list | bool | str | int | float


def has_kernel() -> bool:
    """Say whether this code runs in a Jupyter kernel, where widgets live."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None


@checked
def play(draw: Callable, *, button: str | None = None, **controls: Control) -> object:
    """Give each argument of ``draw`` a slider, menu or text box, and redraw whenever one changes.

    A control is ``(low, high)`` or ``(low, high, step)`` for a slider, a list for a menu, a bool for a tick box, a
    string for a text box, a number for a number box, or any ipywidget; it starts at ``draw``'s own default if there is
    one. ``draw`` returns what to show (a figure, a picture). With a ``button``, redrawing waits for a click, for
    drawings that take seconds. Without a kernel, the result is that of ``draw`` at the starting values.

    >>> play(lambda x=3: x * x, x=(0, 5))
    9
    """
    defaults = starting_values(draw, controls)
    if not has_kernel():
        return draw(**defaults)
    import ipywidgets

    parts = {name: _widget(ipywidgets, name, control, defaults[name]) for name, control in controls.items()}
    output = ipywidgets.Output()

    def redraw(_=None) -> None:
        from IPython.display import display

        output.clear_output(wait=True)
        with output:
            display(draw(**{name: part.value for name, part in parts.items()}))

    if button is None:
        for part in parts.values():
            part.observe(redraw, names="value")
        extra = []
    else:
        extra = [ipywidgets.Button(description=button)]
        extra[0].on_click(redraw)
    redraw()
    return ipywidgets.VBox([*parts.values(), *extra, output])


@checked
def starting_values(draw: Callable, controls: dict[str, Control]) -> dict[str, object]:
    """Choose where each control starts: at ``draw``'s default, the first item of a list, or the middle of a range.

    Raises ``ValueError`` for a control that is not an argument of ``draw``.
    """
    parameters = inspect.signature(draw).parameters
    unknown = [name for name in controls if name not in parameters]
    if unknown:
        raise ValueError(
            f"draw has no argument {', '.join(unknown)}; it has {', '.join(parameters) or 'no arguments'}."
        )
    values = {}
    for name, control in controls.items():
        if parameters[name].default is not inspect.Parameter.empty:
            values[name] = parameters[name].default
        elif isinstance(control, tuple):
            low, high = control[:2]
            values[name] = (low + high) // 2 if isinstance(low, int) and isinstance(high, int) else (low + high) / 2
        elif isinstance(control, list):
            values[name] = control[0]
        else:
            values[name] = getattr(control, "value", control)
    return values


def _widget(ipywidgets, name: str, control: Control, value: object):
    options = {"value": value, "description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(control, tuple):
        whole = all(isinstance(number, int) for number in control)
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        step = {"step": control[2]} if len(control) > 2 else {} if whole else {"step": (control[1] - control[0]) / 20}
        return kind(min=control[0], max=control[1], continuous_update=False, **step, **options)
    if isinstance(control, list):
        return ipywidgets.Dropdown(options=control, **options)
    if isinstance(control, bool):
        return ipywidgets.Checkbox(**options)
    if isinstance(control, str):
        return ipywidgets.Text(continuous_update=False, **options)
    if isinstance(control, int):
        return ipywidgets.IntText(**options)
    return ipywidgets.FloatText(**options) if isinstance(control, float) else control
