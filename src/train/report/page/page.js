// Makes the charts of report.html answer: values under the pointer, zoom, runs that can be hidden,
// other axes. Without it the page shows the same curves, drawn by moe8. Nothing is loaded.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const state = { axis: "steps", range: null, hidden: new Set() };
  const margin = { left: 62, right: 14, top: 10, bottom: 34 };
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  document.documentElement.classList.add("scripted");

  // ---- numbers and axes -----------------------------------------------------
  const axes = {
    steps: { name: "step", of: (run, step) => step, text: (v) => plain(v) },
    tokens: { name: "tokens", of: (run, step) => step * run.tokens, text: (v) => plain(v) },
    time: { name: "training time", of: (run, step) => interpolated(run.time, step), text: duration },
  };

  function plain(value) {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"]]) {
      if (size >= unit) return `${+(value / unit).toPrecision(4)} ${name}`;
    }
    if (size >= 1e4) return Math.round(value).toLocaleString("en-US");
    if (size !== 0 && size < 1e-3) return value.toExponential(2);
    return String(+value.toPrecision(5));
  }

  function duration(seconds) {
    if (seconds < 120) return `${+seconds.toPrecision(3)} s`;
    if (seconds < 7200) return `${+(seconds / 60).toPrecision(3)} min`;
    return `${+(seconds / 3600).toPrecision(3)} h`;
  }

  // Of a table [[x...], [y...]] with rising x.
  function interpolated([xs, ys], x) {
    const i = Math.min(Math.max(1, lowerBound(xs, x)), xs.length - 1);
    if (xs.length === 1) return ys[0];
    return ys[i - 1] + ((x - xs[i - 1]) / (xs[i] - xs[i - 1])) * (ys[i] - ys[i - 1]);
  }

  // The first index whose value is at least x.
  function lowerBound(values, x) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < x) low = middle + 1; else high = middle;
    }
    return low;
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const distance = [1, 2, 5, 10].map((f) => f * power).find((d) => d * 1.0001 >= rough);
    const values = [];
    for (let i = Math.ceil(low / distance); i * distance <= high * (1 + 1e-12); ++i) values.push(i * distance);
    return { values, digits: Math.max(0, Math.min(6, Math.ceil(-Math.log10(distance) - 1e-9))) };
  }

  // Powers of ten, and between them 2 and 5 where there are few; low and high are logarithms.
  function logTicks(low, high) {
    const factors = high - low > 2.5 ? [1] : high - low > 0.6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    const values = [];
    for (let e = Math.floor(low); e <= high; ++e) {
      for (const f of factors) {
        const v = e + Math.log10(f);
        if (v >= low && v <= high) values.push(v);
      }
    }
    return values;
  }

  // ---- one chart --------------------------------------------------------------
  class Chart {
    constructor(figure, spec) {
      this.figure = figure;
      this.spec = spec;
      this.svg = figure.querySelector("svg");
      this.small = spec.small;
      this.log = spec.log;
      this.svg.setAttribute("tabindex", "0");
      if (this.canLog()) {
        this.logButton = button("log", () => { this.log = !this.log; this.draw(); });
        this.logButton.title = "Logarithmic axis";
        figure.querySelector("figcaption").append(this.logButton);
      }
      this.listen();
    }

    canLog() {
      return !this.spec.signed && this.spec.curves.every((c) => c.y.every((v) => v > 0));
    }
    visible() {
      return this.spec.curves.filter((c) => !state.hidden.has(c.run));
    }
    xs(curve) {  // in units of the chosen axis, kept until that changes
      if (curve.axis !== state.axis) {
        curve.axis = state.axis;
        curve.xs = curve.x.map((step) => axes[state.axis].of(data.runs[curve.run], step));
      }
      return curve.xs;
    }
    scaleY(v) { return this.log ? Math.log10(v) : v; }

    wholeX() {
      let low = Infinity, high = -Infinity;
      for (const c of this.spec.curves) {
        const xs = this.xs(c);
        if (!xs.length) continue;
        low = Math.min(low, xs[0]);
        high = Math.max(high, xs[xs.length - 1]);
      }
      return low < high ? [low, high] : [Math.min(low, 0), Math.max(high, 1)];
    }

    domain() {
      const [wholeLow, wholeHigh] = this.wholeX();
      const [x0, x1] = state.range || [wholeLow, wholeHigh];
      const from = state.range ? x0 : wholeLow + this.spec.skip * (wholeHigh - wholeLow);
      let low = Infinity, high = -Infinity;
      for (const c of this.visible()) {
        if (c.raw) continue;
        const xs = this.xs(c);
        for (let i = lowerBound(xs, from); i < xs.length && xs[i] <= x1; ++i) {
          low = Math.min(low, c.y[i]);
          high = Math.max(high, c.y[i]);
        }
      }
      if (this.spec.level && !state.range) {
        low = Math.min(low, this.spec.level[0]);
        high = Math.max(high, this.spec.level[0]);
      }
      if (low > high) [low, high] = [0.1, 1];
      [low, high] = [this.scaleY(low), this.scaleY(high)];
      const room = high > low ? 0.04 * (high - low) : Math.max(1e-6, 0.05 * Math.abs(high));
      return { x0, x1, y0: low - room, y1: high + room };
    }

    draw() {
      const width = Math.max(240, this.figure.clientWidth);
      const height = Math.round(Math.min(this.small ? 240 : 400, Math.max(210, 0.5 * width)));
      Object.assign(this, { width, height, d: this.domain() });
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.replaceChildren();
      if (this.logButton) this.logButton.setAttribute("aria-pressed", String(this.log));
      this.drawGrid();
      this.drawCurves();
      this.overlay = this.add(this.svg, "g", {});
    }

    px(x) {
      return margin.left + ((x - this.d.x0) / (this.d.x1 - this.d.x0)) * (this.width - margin.left - margin.right);
    }
    py(y) {
      const part = (this.scaleY(y) - this.d.y0) / (this.d.y1 - this.d.y0);
      const inside = this.height - margin.top - margin.bottom;
      return this.height - margin.bottom - Math.max(-4, Math.min(5, part)) * inside;
    }
    xAt(px) {
      const part = (px - margin.left) / (this.width - margin.left - margin.right);
      return this.d.x0 + Math.max(0, Math.min(1, part)) * (this.d.x1 - this.d.x0);
    }

    add(parent, tag, attributes, text) {
      const element = document.createElementNS(this.svg.namespaceURI, tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      parent.append(element);
      return element;
    }

    drawGrid() {
      const { d, width, height } = this, right = width - margin.right, bottom = height - margin.bottom;
      const y = this.log ? { values: logTicks(d.y0, d.y1) } : ticks(d.y0, d.y1, this.small ? 4 : 6);
      for (const v of y.values) {
        const at = this.py(this.log ? 10 ** v : v);
        const text = this.log ? plain(10 ** v) : Math.abs(v) >= 1e4 || y.digits >= 5 ? plain(v) : v.toFixed(y.digits);
        this.add(this.svg, "line", { class: "rule", x1: margin.left, x2: right, y1: at, y2: at });
        this.add(this.svg, "text", { x: margin.left - 8, y: at + 4, "text-anchor": "end" }, text);
      }
      const axis = axes[state.axis];
      for (const v of ticks(d.x0, d.x1, Math.max(2, Math.floor(width / 130))).values) {
        const at = this.px(v), last = at > right - 26;
        this.add(this.svg, "text", { x: last ? right : at, y: bottom + 16, "text-anchor": last ? "end" : "middle" }, axis.text(v));
      }
      this.add(this.svg, "text", { x: right, y: height - 3, "text-anchor": "end" }, axis.name);
      if (!this.spec.level) return;
      const at = this.py(this.spec.level[0]);
      if (at < margin.top || at > bottom) return;
      this.add(this.svg, "line", { class: "level", x1: margin.left, x2: right, y1: at, y2: at });
      this.add(this.svg, "text", { x: right, y: at - 6, "text-anchor": "end" }, this.spec.level[1]);
    }

    drawCurves() {
      const inner = { x: margin.left, y: margin.top, width: this.width - margin.left - margin.right,
                      height: this.height - margin.top - margin.bottom };
      const clip = this.add(this.svg, "svg", { ...inner, viewBox: `${inner.x} ${inner.y} ${inner.width} ${inner.height}` });
      for (const raw of [true, false]) {
        for (const c of this.visible().filter((curve) => curve.raw === raw)) this.drawCurve(clip, c);
      }
    }

    drawCurve(parent, c) {
      const xs = this.xs(c), points = [];
      const begin = Math.max(0, lowerBound(xs, this.d.x0) - 1);
      for (let i = begin; i < xs.length; ++i) {
        if (!this.log || c.y[i] > 0) points.push(`${this.px(xs[i]).toFixed(1)},${this.py(c.y[i]).toFixed(1)}`);
        if (xs[i] > this.d.x1) break;
      }
      const colour = data.runs[c.run].colour;
      this.add(parent, "polyline", { class: c.raw ? "raw" : "curve", stroke: colour, points: points.join(" ") });
      if (c.raw || points.length > 40) return;
      for (const point of points) {
        const [cx, cy] = point.split(",");
        this.add(parent, "circle", { cx, cy, r: 2.5, fill: colour });
      }
    }

    // ---- the pointer ----------------------------------------------------------
    listen() {
      const local = (event) => (event.clientX - this.svg.getBoundingClientRect().left) * (this.width / this.svg.clientWidth);
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "mouse" && event.button === 0) this.from = local(event);
        this.hover(local(event), event);
      });
      this.svg.addEventListener("pointermove", (event) => this.hover(local(event), event));
      this.svg.addEventListener("pointerup", (event) => {
        const from = this.from, to = local(event);
        this.from = undefined;
        if (from !== undefined && Math.abs(to - from) > 8) {
          setRange([this.xAt(Math.min(from, to)), this.xAt(Math.max(from, to))]);
        }
      });
      this.svg.addEventListener("pointerleave", () => this.leave());
      this.svg.addEventListener("blur", () => this.leave());
      this.svg.addEventListener("dblclick", () => setRange(null));
      this.svg.addEventListener("keydown", (event) => this.key(event));
    }

    leave() {
      this.from = undefined;
      this.overlay.replaceChildren();
      tip.hidden = true;
    }

    key(event) {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) {
        const middle = (margin.left + this.width - margin.right) / 2;
        const at = Math.max(margin.left, Math.min(this.width - margin.right, (this.cursor ?? middle) + move * 8));
        const box = this.svg.getBoundingClientRect();
        this.hover(at, { clientX: box.left + at, clientY: box.top + 20 });
      } else if (event.key === "+" || event.key === "-") {
        zoom(event.key === "+" ? 0.5 : 2, this.cursor === undefined ? undefined : this.xAt(this.cursor));
      } else if (event.key === "0" || event.key === "Escape") {
        setRange(null);
      } else {
        return;
      }
      event.preventDefault();
    }

    hover(at, event) {
      this.cursor = at;
      this.overlay.replaceChildren();
      const x = this.xAt(at), rows = [];
      let nearest;
      for (const c of this.visible()) {
        if (c.raw && this.visible().some((other) => other.run === c.run && !other.raw)) continue;
        const xs = this.xs(c);
        if (!xs.length) continue;
        let i = Math.min(xs.length - 1, lowerBound(xs, x));
        if (i > 0 && x - xs[i - 1] < xs[i] - x) --i;
        if (nearest === undefined || Math.abs(xs[i] - x) < Math.abs(nearest.x - x)) nearest = { x: xs[i], step: c.x[i] };
        rows.push({ run: data.runs[c.run], value: c.y[i], x: xs[i] });
      }
      if (nearest === undefined) return;
      const top = margin.top, bottom = this.height - margin.bottom;
      this.add(this.overlay, "line", { class: "cursor", x1: this.px(nearest.x), x2: this.px(nearest.x), y1: top, y2: bottom });
      for (const row of rows) {
        const cy = this.py(row.value);
        if (cy >= top && cy <= bottom) this.add(this.overlay, "circle", { cx: this.px(row.x), cy, r: 3.5, fill: row.run.colour });
      }
      if (this.from !== undefined) {
        this.add(this.overlay, "rect", { class: "selection", x: Math.min(this.from, at), y: top, width: Math.abs(at - this.from), height: bottom - top });
      }
      this.showTip(nearest, rows, event);
    }

    showTip(nearest, rows, event) {
      const head = document.createElement("div");
      head.textContent = `step ${nearest.step.toLocaleString("en-US")}` +
        (state.axis === "steps" ? "" : `, ${axes[state.axis].text(nearest.x)}${state.axis === "tokens" ? " tokens" : ""}`);
      const lines = rows.map((row) => {
        const line = document.createElement("div"), name = document.createElement("span"), value = document.createElement("b");
        line.className = "value";
        name.append(swatch(row.run.colour), row.run.name);
        value.textContent = `${this.spec.signed && row.value > 0 ? "+" : ""}${plain(row.value)}${this.spec.unit ? ` ${this.spec.unit}` : ""}`;
        line.append(name, value);
        return line;
      });
      tip.replaceChildren(head, ...lines);
      placeTip(event);
    }
  }

  // ---- what all charts share --------------------------------------------------
  const charts = [...document.querySelectorAll("figure[data-chart]")].map(
    (figure) => new Chart(figure, data.charts[figure.dataset.chart]));
  const drawAll = () => charts.forEach((chart) => chart.draw());

  function setRange(range) {
    state.range = range;
    tip.hidden = true;
    drawAll();
  }

  function zoom(factor, middle) {
    if (!charts.length) return;
    const [low, high] = charts[0].wholeX(), [a, b] = state.range || [low, high];
    const at = middle ?? (a + b) / 2;
    const range = [Math.max(low, at - (at - a) * factor), Math.min(high, at + (b - at) * factor)];
    setRange(range[0] <= low && range[1] >= high ? null : range);
  }

  function swatch(colour) {
    const square = document.createElement("span");
    square.className = "swatch";
    square.style.background = colour;
    return square;
  }

  function button(text, act) {
    const element = document.createElement("button");
    element.type = "button";
    element.append(text);
    element.addEventListener("click", act);
    return element;
  }

  function placeTip(event) {
    tip.hidden = false;
    const gap = 14, box = tip.getBoundingClientRect();
    const left = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + gap, innerHeight - box.height - 4))}px`;
  }

  // ---- the bar above the charts -----------------------------------------------
  function group(name, buttons) {
    const element = document.createElement("div"), label = document.createElement("span");
    element.className = "group";
    label.textContent = name;
    element.append(...(name ? [label] : []), ...buttons);
    return element;
  }

  function runButtons() {
    return data.runs.map((run, index) => {
      const element = button(swatch(run.colour), () => {
        if (!state.hidden.delete(index)) state.hidden.add(index);
        element.setAttribute("aria-pressed", String(!state.hidden.has(index)));
        drawAll();
      });
      element.append(run.name);
      element.className = "run";
      element.title = "Show or hide this run";
      element.setAttribute("aria-pressed", "true");
      return element;
    });
  }

  function axisButtons() {
    const buttons = Object.keys(axes).map((name) => button(name, () => {
      state.axis = name;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other.textContent === name)));
      setRange(null);
    }));
    buttons[0].setAttribute("aria-pressed", "true");
    return buttons;
  }

  const controls = document.getElementById("controls");
  if (charts.length) {
    if (data.runs.length > 1) controls.append(group("", runButtons()));
    const zoomButtons = [button("+", () => zoom(0.5)), button("\u2212", () => zoom(2)), button("whole run", () => setRange(null))];
    zoomButtons[0].setAttribute("aria-label", "Zoom in");
    zoomButtons[1].setAttribute("aria-label", "Zoom out");
    controls.append(group("over", axisButtons()), group("zoom", zoomButtons));
    controls.title = "Drag across a chart to zoom in, double-click to see all";
    controls.hidden = false;
  }

  // Cells of maps say their value at once, on touch screens as well.
  document.addEventListener("pointerover", (event) => {
    const cell = event.target instanceof Element ? event.target.closest("svg.cells rect") : null;
    if (!cell) {
      if (!(event.target instanceof Element && event.target.closest("svg.chart"))) tip.hidden = true;
      return;
    }
    const title = cell.querySelector("title");
    if (title) {  // instead of the browser's own, which comes late
      cell.dataset.tip = title.textContent;
      title.remove();
    }
    tip.textContent = cell.dataset.tip;
    placeTip(event);
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  addEventListener("resize", drawAll);
  drawAll();
})();
