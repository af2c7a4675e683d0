"use strict";
// Draws each chart from the columns beside it. It asks nobody for anything.
(() => {
  const ink = "#d7dce2", quiet = "#9aa4b0", grid = "#353b43";
  const DARK = {
    background: "transparent",
    title: {color: ink, subtitleColor: quiet},
    axis: {labelColor: quiet, titleColor: quiet, domainColor: quiet, tickColor: quiet, gridColor: grid},
    legend: {labelColor: quiet, titleColor: quiet},
    text: {color: quiet},
    rule: {color: quiet},
  };
  const LIGHT = {background: "transparent"};
  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const loader = {load: refuse, sanitize: refuse, http: refuse, file: refuse};
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 36rem)");
  const views = new Map();

  async function unpack(figure) {
    const text = figure.querySelector("script[type='application/json']").textContent;
    const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function rows(columns) {
    const names = Object.keys(columns);
    const length = names.length ? columns[names[0]].length : 0;
    const row = (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    return Array.from({length}, row);
  }

  function dress(config) {
    const worn = {...config};
    for (const [part, look] of Object.entries(dark.matches ? DARK : LIGHT)) {
      worn[part] = typeof look === "object" ? {...worn[part], ...look} : look;
    }
    if (narrow.matches) worn.legend = {...worn.legend, labelLimit: 280};
    return worn;
  }

  // On a phone the legend has one column and the axis fewer ticks.
  function slim(part) {
    if (!part || typeof part !== "object") return;
    for (const [key, value] of Object.entries(part)) {
      if (key === "legend" && value && typeof value === "object") value.columns = 1;
      slim(value);
    }
  }

  async function draw(figure) {
    const {spec, data} = await unpack(figure);
    spec.datasets = Object.fromEntries(Object.entries(data).map(([name, c]) => [name, rows(c)]));
    spec.config = dress(spec.config);
    if (narrow.matches) slim({layer: spec.layer, encoding: spec.encoding});
    if (typeof spec.width === "number") {
      spec.width = "container";
      spec.autosize = {type: "fit-x", contains: "padding"};
    }
    const box = figure.querySelector(".live");
    box.hidden = false;
    views.get(figure)?.finalize();
    figure.classList.add("drawn");
    const drawn = await vegaEmbed(box, spec, {
      mode: "vega-lite", ast: true, actions: false, renderer: "canvas", loader,
      defaultStyle: false, tooltip: {disableDefaultStyle: true},
    });
    views.set(figure, drawn);
  }

  const onScreen = (figure) => {
    const {top, bottom} = figure.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  };

  // What is being looked at comes first; between two charts the page can be read and scrolled.
  async function drawAll() {
    const figures = [...document.querySelectorAll("figure.chart")];
    const left = new Set(figures);
    let live = 0;
    while (left.size) {
      const figure = [...left].find(onScreen) ?? left.values().next().value;
      left.delete(figure);
      try {
        await draw(figure);
        live += 1;
      } catch (problem) {
        figure.classList.remove("drawn");
        figure.querySelector(".live").hidden = true;
        figure.dataset.problem = String(problem).slice(0, 300);
      }
      await new Promise((go) => setTimeout(go));
    }
    document.documentElement.dataset.charts = `${live} of ${figures.length}`;
  }

  let turn = Promise.resolve();
  const redraw = () => { turn = turn.then(drawAll); };
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  redraw();
})();
