"""The web page of the explorer: select a region of one image and view its heat maps. Needs the extra `explore`.

The server answers only to its own address (`own_host`) and serves no files: pictures are embedded in its responses, and
only those of images in the folder.
"""

from __future__ import annotations

import os
from html import escape
from typing import Any

from PIL import Image

from resim.draw.html_blocks import BLOCK_CSS, data_url
from resim.errors import UserError
from resim.optional_packages import import_optional
from resim.similarity.explorer import Explorer
from resim.similarity.own_host import HostGuard, OwnHost

NUM_OTHERS = 3  # images that are compared on load
NUM_LEVELS = 2  # levels that are shown on load

PICKER = """
<div class="picker" role="img" aria-label="${value.name}: click a point or drag a box">
  <img src="${value.picture}" alt="${value.name}" draggable="false">
  <div class="band" style="${value.band}"></div>
</div>
"""
PICKER_CSS = """
.picker { position: relative; touch-action: none; cursor: crosshair; user-select: none; width: 100%; }
.picker img { display: block; width: 100%; }
.band { position: absolute; border: 2px solid white; outline: 2px solid black; box-sizing: border-box; }
"""
# a drag of less than 6 px is a click
PICKER_JS = """
let start = null;
const clamp = (fraction) => Math.min(1, Math.max(0, fraction));
const position = (event) => {
  const box = element.querySelector('.picker img').getBoundingClientRect();
  return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
};
const draw = (a, b) => {
  const style = element.querySelector('.band').style, percent = (value) => 100 * value + '%';
  style.display = 'block';
  style.left = percent(Math.min(a[0], b[0])); style.width = percent(Math.abs(a[0] - b[0]));
  style.top = percent(Math.min(a[1], b[1])); style.height = percent(Math.abs(a[1] - b[1]));
};
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.picker') || event.button > 0) return;
  event.preventDefault();
  start = { point: position(event), x: event.clientX, y: event.clientY };
  element.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => { if (start) draw(start.point, position(event)); });
element.addEventListener('pointercancel', () => { start = null; });
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  const end = position(event), isClick = Math.hypot(event.clientX - start.x, event.clientY - start.y) < 6;
  const region = isClick ? end : [...start.point, ...end];
  start = null;
  trigger('select', { region });
});
"""
PAGE_CSS = BLOCK_CSS + "@media (min-width: 900px) { #query { position: sticky; top: 0; align-self: flex-start; } }"
INTRODUCTION = (
    "# Cosine similarity to one region\n"
    "Click a point or drag a box in the image. Colour: cosine similarity to it, from the lowest (dark blue) to the "
    "highest (yellow); each level and network has its own scale. Ring: the most similar cell; its cosine is below the "
    "picture."
)


def build_page(explorer: Explorer) -> Any:
    """The page as `gradio.Blocks`, not launched.

    Raises:
        UserError: gradio is not installed.
    """
    gr = _gradio()
    names, levels = explorer.names, explorer.levels

    def compare(name: str, region: list[float], others: list[str], chosen: list[str]) -> tuple[dict[str, str], str]:
        """The picker with the marked region, and the heat maps; `region` is in fractions of the sides."""
        try:
            pixels = explorer.region(name, region)
            ordered = [level for level in levels if level in chosen]
            return picker_value(explorer, name, region), explorer.heat_maps_html(name, pixels, others, ordered)
        except UserError as error:
            raise gr.Error(escape(str(error))) from None

    def select_region(
        name: str, others: list[str], chosen: list[str], event: Any
    ) -> tuple[dict[str, str], str, list[float]]:
        region = [float(value) for value in event.region][:4]
        region = region if len(region) in (2, 4) else [0.5, 0.5]
        return *compare(name, region, others, chosen), region

    def select_image(name: str, others: list[str], chosen: list[str]) -> tuple[dict[str, str], str, list[float]]:
        return *compare(name, [0.5, 0.5], others, chosen), [0.5, 0.5]

    select_region.__annotations__["event"] = gr.EventData  # gradio passes the event to a parameter of this type
    with gr.Blocks(title="resim explore", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        region = gr.State([0.5, 0.5])
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="query"):
                image = gr.Dropdown(names, value=names[0], label="Image")
                picker = gr.HTML(
                    picker_value(explorer, names[0], [0.5, 0.5]),
                    html_template=PICKER, css_template=PICKER_CSS, js_on_load=PICKER_JS, elem_id="picker",
                )  # fmt: skip
                with gr.Accordion("Other images and levels", open=False):
                    others = gr.Dropdown(
                        names, value=names[1 : 1 + NUM_OTHERS], multiselect=True, label="Images to compare with"
                    )
                    chosen = gr.CheckboxGroup(levels, value=levels[:NUM_LEVELS], label="Levels")
            with gr.Column(scale=3, min_width=320):
                heat_maps = gr.HTML(elem_id="heat-maps")
        inputs, outputs = [image, others, chosen], [picker, heat_maps, region]
        settings = {"api_visibility": "private", "show_progress": "minimal"}
        picker.select(select_region, inputs, outputs, **settings)
        gr.on([page.load, image.change], select_image, inputs, outputs, **settings)
        gr.on(
            [others.change, chosen.change],
            lambda name, region, others, chosen: compare(name, region, others, chosen)[1],
            [image, region, others, chosen], heat_maps, **settings,
        )  # fmt: skip
    return page


def serve(explorer: Explorer, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> Any:
    """Launch the page.

    Args:
        explorer: the content.
        host: address to listen on.
        port: port to listen on.
        block: whether to return only when the server is stopped.

    Returns:
        The page, with its address as `page.local_url`.

    Raises:
        UserError: gradio is not installed, or the port is in use.
    """
    gr = _gradio()
    page = build_page(explorer)
    middleware = import_optional("starlette.middleware", "the explorer needs starlette, a part of gradio").Middleware
    own = OwnHost(host=host, port=port)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host and "[" not in host else host, server_port=port,
            share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            allowed_paths=[], max_file_size=1, ssr_mode=False, footer_links=[], theme=gr.themes.Default(**fonts),
            css=PAGE_CSS, app_kwargs={"middleware": [middleware(HostGuard, own=own)]},
        )  # fmt: skip
    except OSError:  # gradio's message names settings of gradio
        raise UserError(
            f"--host {host} --port {port}: cannot listen there; if the port is in use, name another --port"
        ) from None
    # gradio answers preflight requests outside of that middleware: from now on the guard is the outermost
    page.server.config.loaded_app = HostGuard(page.server.config.loaded_app, own)
    if block:
        print(f"{len(explorer.names)} images of {explorer.folder} at {page.local_url} (Ctrl+C to stop)", flush=True)
        page.block_thread()
    return page


def picker_value(explorer: Explorer, name: str, region: list[float]) -> dict[str, str]:
    """The value of the picker: the image, and the outline of the region in it.

    The template inserts these texts verbatim, so the name of the file is escaped.
    """
    x0, y0, x1, y1 = (*region, *region)[:4]
    left, top, width, height = min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)
    position = f"left: {100 * left:.3f}%; top: {100 * top:.3f}%;"
    size = f"width: {100 * width:.3f}%; height: {100 * height:.3f}%;"
    if len(region) == 2:
        size = "width: 18px; height: 18px; margin: -9px; border-radius: 50%;"
    return {
        "name": escape(name),
        "picture": data_url(Image.fromarray(explorer.photograph(name).pixels)),
        "band": position + size,
    }


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return import_optional("gradio", "the explorer needs gradio: pip install '.[explore]' in resim's clone")
