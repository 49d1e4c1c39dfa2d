"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const reduced = 3; // significant digits in read-outs

  // ---- colours: "#light|#dark|opacity" becomes the colour of the theme in use ----
  const token = /(#[0-9a-f]{6})\|(#[0-9a-f]{6})\|([\d.]+)/g;
  const colour = (text) => text.replace(token, (_, light, dark, opacity) => {
    const hex = root.dataset.theme === "dark" ? dark : light;
    if (opacity === "1") return hex;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${opacity})`;
  });
  const resolve = (value) => {
    if (typeof value === "string") return value.includes("|") ? colour(value) : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(resolve);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v)]));
    return value;
  };
  const skin = () => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: "zoom",
    font: { family: style("--sans"), size: 12, color: style("--ink") },
    hoverlabel: { bgcolor: style("--ground"), bordercolor: style("--line"), font: { color: style("--ink"), family: style("--sans"), size: 12 }, align: "left", namelength: -1 },
  });
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset", scrollZoom: false };

  // ---- arms hidden everywhere at once ----
  const hidden = new Set();
  const shown = (trace) => !(trace.meta && hidden.has(trace.meta.arm));

  // ---- on paper everything is light, drawn, and as wide as the page ----
  const onPaper = () => root.classList.contains("paper");

  // ---- plates: figures that were laid out before ----
  const drawn = new Map(); // element → function that draws it anew
  // On a narrow screen long names of rows and axes take two lines.
  const halved = (name, longest) => {
    const letters = name.match(/&\w+;|./gsu) ?? [];
    if (letters.length <= longest) return name;
    const half = letters.length / 2;
    const ends = letters.flatMap((letter, i) => (/[\s_/-]/.test(letter) && Math.abs(i + 1 - half) <= 3 ? [i + 1] : []));
    const place = ends.reduce((a, b) => (Math.abs(b - half) < Math.abs(a - half) ? b : a), ends[0] ?? Math.round(half));
    return `${letters.slice(0, place).join("").trimEnd()}<br>${letters.slice(place).join("")}`;
  };
  const wrap = (layout) => {
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const axis = layout[name];
      if (axis.title?.text) axis.title = { ...axis.title, text: halved(axis.title.text, 26) };
      if (!name.startsWith("yaxis") || !axis.ticktext) continue;
      axis.ticktext = axis.ticktext.map((text) => text.replace(/>([^<]+)</, (_, label) => `>${halved(label, 15)}<`));
      axis.tickfont = { size: 11 };
    }
    layout.margin = { ...layout.margin, b: 62 };
  };
  const plate = (element) => {
    const figure = data.plates[element.dataset.plate];
    const narrow = element.clientWidth < 640;
    const spec = resolve(figure);
    const traces = spec.data.map((trace) => ({ ...trace, type: "scatter", visible: shown(trace) }));
    const layout = { ...skin(), ...spec.layout, height: figure.height };
    if (narrow && figure.narrow) Object.assign(layout, resolve(figure.narrow.layout), { height: figure.narrow.height });
    if (narrow) wrap(layout);
    layout.width = onPaper() ? element.clientWidth : undefined;
    Plotly.react(element, traces, layout, config);
  };

  // ---- trajectories: panels built here, because what they show is chosen here ----
  const T = data.trajectories;
  const choice = { x: T.log_steps ? "log" : "linear", y: "auto", split: "train", seeds: true };
  const outcome = (measure) => measure === "accuracy" || measure === "loss";
  const panelColumn = (measure) => {
    const splits = T.measures[measure].splits;
    if (outcome(measure) && splits.includes("test")) return "test"; // training samples are dotted beside it
    return splits.includes(choice.split) ? choice.split : (splits.includes("train") ? "train" : splits[0]);
  };
  const tracesOf = (column, faint) => T.arms.flatMap((arm) => {
    const summary = (T.columns[column] || {})[arm.name];
    if (!summary) return [];
    const common = { type: "scatter", mode: "lines", x: T.steps, hoverinfo: "none", meta: { arm: arm.name }, visible: !hidden.has(arm.name) };
    const hue = (opacity) => colour(`${arm.colour}|${opacity}`);
    if (faint) return [{ ...common, y: summary.m, line: { color: hue(1), width: 1.2, dash: "2px,3px" }, opacity: 0.8 }];
    const traces = [];
    if (summary.l) {
      traces.push({ ...common, y: summary.l, line: { width: 0 }, hoverinfo: "skip" });
      traces.push({ ...common, y: summary.h, line: { width: 0 }, fill: "tonexty", fillcolor: hue(0.1), hoverinfo: "skip" });
    }
    if (choice.seeds) for (const y of summary.s || []) traces.push({ ...common, y, line: { color: hue(1), width: 0.6 }, opacity: 0.35, hoverinfo: "skip" });
    traces.push({ ...common, y: summary.m, line: { color: hue(1), width: 2.2, dash: arm.dash }, name: arm.title });
    return traces;
  });
  // Onsets stand on the step axis: hollow for memorisation, filled for generalisation.
  const onsetTraces = () => ["m", "g"].map((which) => {
    const arms = T.arms.filter((arm) => !hidden.has(arm.name) && T.onsets[arm.name] && T.onsets[arm.name][which] != null);
    const colours = arms.map((arm) => colour(`${arm.colour}|1`));
    return {
      type: "scatter", mode: "markers", yaxis: "y2", x: arms.map((arm) => T.onsets[arm.name][which]), y: arms.map(() => 0.03), hoverinfo: "skip",
      cliponaxis: false, marker: { symbol: which === "m" ? "triangle-up-open" : "triangle-up", size: 10, color: colours, line: { color: colours, width: 1.6 } },
    };
  });
  const trajectory = (element) => {
    const rows = T.arms.length - hidden.size;
    const wide = window.innerWidth >= 560 || onPaper();
    element.style.height = wide ? `${Math.min(340, Math.max(190, 19 * rows + 10))}px` : "";
    element.nextElementSibling.style.maxHeight = wide ? element.style.height : "";
    const measure = element.dataset.measure;
    const about = T.measures[measure];
    const split = panelColumn(measure);
    const context = outcome(measure) && split !== "train" && about.splits.includes("train");
    const traces = [...(context ? tracesOf(`train/${measure}`, true) : []), ...tracesOf(`${split}/${measure}`, false), ...onsetTraces()];
    const log = choice.y === "auto" ? about.log : choice.y === "log" && !about.percent;
    const axis = { gridcolor: style("--line"), linecolor: style("--muted"), zeroline: false };
    const last = element.dataset.last === "true";
    const layout = {
      ...skin(), hovermode: "x", showlegend: false, margin: { l: 62, r: 14, t: 8, b: last ? 44 : 22 },
      xaxis: { ...axis, type: choice.x, title: last ? { text: "Training step", standoff: 6 } : undefined, range: range(), ...(choice.x === "log" ? decadeTicks(1) : {}) },
      yaxis: { ...axis, type: log ? "log" : "linear", nticks: 5, ...(about.percent ? { tickformat: ".0%", range: [-0.03, 1.05] } : {}), ...(log ? decadeTicks(decades(traces)) : {}) },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      width: onPaper() ? element.clientWidth : undefined,
    };
    Plotly.react(element, traces, layout, config).then(() => { bind(element); mark(element, T.steps[cursor]); });
    const label = element.closest(".panel-row").querySelector("small");
    if (label) label.textContent = `${T.splits[split] || split}${context ? "; dotted: training samples" : ""}${log ? "; log scale" : ""}`;
  };
  const decadeTicks = (every) => ({ dtick: every, exponentformat: "power", tickfont: { size: 9.6 } }); // plotly draws powers a quarter larger
  const decades = (traces) => {
    let low = Infinity, high = 0;
    for (const trace of traces) if (trace.yaxis !== "y2") for (const v of trace.y) if (v > 0) { low = Math.min(low, v); high = Math.max(high, v); }
    return Math.max(1, Math.ceil(Math.log10(high / low) / 4) || 1);
  };
  let zoom = null;
  const first = T.steps.find((step) => step > 0) || 1;
  const range = () => {
    const [low, high] = zoom || [choice.x === "log" ? first : T.steps[0] || 0, T.steps[T.steps.length - 1] || 1];
    return choice.x === "log" ? [Math.log10(Math.max(low, 1e-9)), Math.log10(high)] : [low, high];
  };
  const bind = (element) => {
    if (element.dataset.bound) return;
    element.dataset.bound = "true";
    element.on("plotly_hover", (event) => read(nearest(event.points[0].x)));
    element.on("plotly_relayout", (event) => {
      if (!("xaxis.range[0]" in event || "xaxis.range" in event || event["xaxis.autorange"])) return;
      const limits = event["xaxis.autorange"] ? null : element.layout.xaxis.range.map((v) => (choice.x === "log" ? 10 ** v : v));
      if (JSON.stringify(limits) === JSON.stringify(zoom)) return;
      zoom = limits;
      panels().filter((other) => other !== element && drawn.has(other)).forEach((other) => Plotly.relayout(other, { "xaxis.range": range() }));
    });
  };
  const panels = () => all(".trajectory").filter((element) => !element.closest("[hidden]"));

  // ---- one cursor for all panels, moved by hovering or by the slider ----
  let cursor = T.steps.length - 1;
  const nearest = (step) => {
    let best = 0;
    T.steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(T.steps[best] - step)) best = i; });
    return best;
  };
  const number = (value, percent) => {
    if (value == null) return "–";
    if (percent) return `${Number((100 * value).toPrecision(4))} %`;
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(reduced)));
  };
  const read = (index) => {
    cursor = index;
    const step = T.steps[index];
    const slider = document.getElementById("cursor");
    if (!slider) return;
    slider.value = index;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    document.getElementById("cursor-step").textContent = `step ${step}`;
    for (const cell of all("[data-read]")) {
      const column = cell.dataset.read;
      const summary = (T.columns[`${panelColumn(column)}/${column}`] || {})[cell.dataset.arm];
      cell.textContent = summary ? number(summary.m[index], T.measures[column].percent) : "–";
    }
    for (const element of panels()) mark(element, step);
  };
  const mark = (element, step) => {
    const layout = element._fullLayout;
    if (!layout || !layout.xaxis) return;
    let line = element.querySelector(":scope > .cursor");
    if (!line) { line = document.createElement("div"); line.className = "cursor"; element.append(line); }
    const at = layout.xaxis.d2p(step);
    const inside = Number.isFinite(at) && at >= -1 && at <= layout.xaxis._length + 1;
    line.style.cssText = inside ? `display:block;left:${layout.xaxis._offset + at}px;top:${layout.yaxis._offset}px;height:${layout.yaxis._length}px` : "";
  };
  // Titles of doses differ at their ends, so what is left out is the middle.
  const clipped = (title) => (title.length > 17 ? `${title.slice(0, 7).trim()}…${title.slice(-8).trim()}` : title);
  const reader = () => {
    for (const element of panels()) {
      const body = element.parentElement.querySelector(".values tbody");
      body.replaceChildren();
      for (const arm of T.arms.filter((a) => !hidden.has(a.name))) {
        const row = body.insertRow();
        const name = document.createElement("th");
        name.scope = "row"; name.append(key(arm), window.innerWidth < 560 ? clipped(arm.title) : arm.title); name.title = arm.title;
        row.append(name);
        const cell = row.insertCell();
        cell.dataset.read = element.dataset.measure; cell.dataset.arm = arm.name;
      }
    }
    if (T.steps.length) read(Math.max(0, Math.min(cursor, T.steps.length - 1)));
  };
  const key = (arm) => keyOf(`${arm.colour}|1`, arm.dash, "");
  const keyOf = (hue, dash, symbol) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "key"); svg.setAttribute("viewBox", "0 0 26 10"); svg.setAttribute("aria-hidden", "true");
    const pattern = dash === "solid" ? "" : dash.replaceAll("px", "");
    svg.innerHTML = symbol ? `<circle class="${symbol}" cx="13" cy="5" r="4"></circle>` : `<line x1="0" x2="26" y1="5" y2="5" stroke-dasharray="${pattern}"></line>`;
    svg.dataset.colour = hue;
    svg.style.setProperty("--arm", colour(hue));
    return svg;
  };

  // ---- drawing when near the window, and again when something changes ----
  const draw = (element) => {
    const how = element.dataset.measure ? trajectory : plate;
    drawn.set(element, how);
    how(element);
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "600px" });
  const redraw = () => {
    const last = panels().at(-1);
    all(".trajectory").forEach((element) => { element.dataset.last = String(element === last); });
    for (const [element, how] of drawn) if (!element.closest("[hidden]")) how(element);
    reader();
  };
  const paintKeys = () => all("svg[data-colour]").forEach((svg) => svg.style.setProperty("--arm", colour(svg.dataset.colour)));

  all("[data-key]").forEach((place) => { const arm = T.arms.find((a) => a.name === place.dataset.key); if (arm) place.replaceWith(key(arm)); });
  all("[data-line]").forEach((place) => place.replaceWith(keyOf(place.dataset.line, place.dataset.dash, place.dataset.symbol)));
  const paintFamilies = () => all("[data-family]").forEach((card) => card.style.setProperty("--family", colour(card.dataset.family)));
  paintFamilies();
  all(".arm-toggle").forEach((button) => {
    button.addEventListener("click", () => {
      const name = button.dataset.arm;
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      all(`.arm-toggle`).filter((b) => b.dataset.arm === name).forEach((b) => b.setAttribute("aria-pressed", String(!hidden.has(name))));
      redraw();
    });
  });
  all("[data-choice]").forEach((input) => input.addEventListener("change", () => {
    choice[input.dataset.choice] = input.type === "checkbox" ? input.checked : input.value;
    if (input.dataset.choice === "x") zoom = null;
    redraw();
  }));
  all("[data-panel]").forEach((box) => box.addEventListener("change", () => {
    const row = document.getElementById(`panel-${box.dataset.panel}`);
    row.hidden = !box.checked;
    const element = row.querySelector(".trajectory");
    if (box.checked && !drawn.has(element)) seen.observe(element);
    redraw();
  }));
  const slider = document.getElementById("cursor");
  if (slider) slider.addEventListener("input", () => read(Number(slider.value)));
  document.getElementById("theme").addEventListener("click", () => window.switchTheme());
  document.addEventListener("themechange", () => { paintKeys(); paintFamilies(); redraw(); });

  let theme = null; // to come back to after printing
  window.addEventListener("beforeprint", () => {
    if (onPaper()) return;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("paper");
    all(".trajectory, .plate").filter((element) => !element.closest("[hidden]")).forEach((element) => { seen.unobserve(element); draw(element); });
    document.dispatchEvent(new Event("themechange"));
  });
  window.addEventListener("afterprint", () => {
    if (!onPaper()) return;
    root.classList.remove("paper");
    root.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
    for (const element of drawn.keys()) if (!element.closest("[hidden]")) Plotly.Plots.resize(element);
  });

  // ---- tables that sort ----
  all("table.sortable").forEach((table) => {
    all("thead th button", table).forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th");
      const index = [...head.parentElement.children].indexOf(head);
      const down = head.getAttribute("aria-sort") === "ascending";
      all("th", head.parentElement).forEach((th) => th.hasAttribute("aria-sort") && th.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => { const cell = row.children[index]; return cell.dataset.value ?? cell.textContent; };
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = down ? -1 : 1;
        return sign * (Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y) : Number(x) - Number(y));
      };
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...rows);
    }));
  });

  // ---- a link to something folded unfolds it ----
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", unfold);
  all('a[href^="#"]').forEach((link) => link.addEventListener("click", () => { if (link.hash === location.hash) unfold(); }));
  unfold();

  // ---- where the reader is ----
  const links = new Map(all("nav.contents a").map((a) => [a.hash.slice(1), a]));
  const here = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      links.forEach((a) => a.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  links.forEach((_, id) => { const section = document.getElementById(id); if (section) here.observe(section); });

  all(".trajectory").forEach((element) => { if (!element.closest("[hidden]")) seen.observe(element); });
  all(".plate").forEach((element) => seen.observe(element));
  redraw();
  document.body.dataset.ready = "true";
})();
