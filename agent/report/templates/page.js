"use strict";
// Charts, the switch of light and dark, and the filter of the ideas. Texts of the night are written as text, never as HTML.
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const $ = (query, within = document) => within.querySelector(query);
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  // --- light and dark; the charts are coloured by the style sheet, so they follow ---
  const stored = (value) => {
    try {
      return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme");
    } catch {
      return null; // a browser may forbid it to a file
    }
  };
  const chosen = stored();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  $("#theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    stored((root.dataset.theme = now === "dark" ? "light" : "dark"));
  });

  // --- going somewhere opens what it is in ---
  const arrive = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.hidden) clearFilter();
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    if (target.matches(".card")) $("details", target).open = true;
    target.scrollIntoView();
  };
  const go = (id) => (location.hash === "#" + id ? arrive() : (location.hash = id));

  // --- charts ---
  const holder = document.getElementById("night");
  const night = holder && window.vegaEmbed ? JSON.parse(holder.textContent) : null;
  const draw = async (place, spec) => {
    try {
      const { view } = await vegaEmbed(place, spec, { mode: "vega-lite", ast: true, renderer: "svg", actions: false });
      view.addEventListener("click", (event, item) => item && item.datum && item.datum.go && go(item.datum.go));
      return true;
    } catch (error) {
      place.replaceChildren(make("p", "This chart could not be drawn: " + error.message, { className: "note" }));
      return false;
    }
  };
  const narrow = matchMedia("(max-width: 720px)").matches;
  const fresh = (name) => JSON.parse(JSON.stringify(night.specs[name], (key, value) => (narrow && key === "labelLimit" ? 110 : value)));

  const drawStairs = async () => {
    const by = $("input[name=over]:checked").value;
    const drawn = await draw($("#stairs"), fresh("staircase-" + by));
    $(".as-table").open = !drawn;
    if (drawn && !root.dataset.drawn) root.dataset.drawn = Math.round(performance.now());
  };

  const titled = (label, options, value, mark) => {
    const choice = make("select");
    choice.append(...options.map(([key, text]) => make("option", text, { value: key })));
    choice.value = value;
    const whole = make("label");
    whole.append(mark ? make("i") : "", label + " ", choice);
    return [whole, choice];
  };

  const curvesIn = (box) => {
    const number = box.dataset.curves;
    const keyed = night.curves.map((curve, place) => [String(place), curve.run, curve.experiment]);
    const own = number === "" ? keyed : keyed.filter(([, , experiment]) => String(experiment) === number);
    const first = own.length ? own[own.length - 1][0] : "";
    const baseline = keyed.find(([key, , experiment]) => experiment === 0 && key !== first);
    const [ours, run] = titled("run", own, first, true);
    const [theirs, other] = titled("beside it", [["", "nothing"], ...keyed], baseline ? baseline[0] : "", true);
    const show = () => drawCurves($(".curves", box), [...new Set([run.value, other.value])].filter(Boolean).map((key) => night.curves[+key]));
    run.addEventListener("change", show);
    other.addEventListener("change", show);
    $(".pick", box).replaceChildren(ours, theirs);
    show();
  };

  const drawCurves = (place, runs) => {
    place.replaceChildren();
    let drawn = 0;
    for (const [over, heading, title] of [["cycles", "Over cycles", "cycle"], ["seconds", "Over its seconds", "seconds"]]) {
      const names = [...new Set(runs.flatMap((run) => run[over].series.map(([name]) => name)))];
      if (!names.length) continue;
      place.append(make(place.closest(".card") ? "h4" : "h3", heading));
      for (const name of names) {
        const values = runs.flatMap((run) => {
          const found = run[over].series.find(([other]) => other === name);
          return found ? found[1].map((y, at) => ({ run: run.run, x: run[over].x[at], y })).filter((point) => point.y !== null && point.x !== undefined) : [];
        });
        if (!values.length) continue;
        const spec = fresh("curve");
        spec.datasets = { curve: values };
        spec.encoding.x.title = title;
        spec.encoding.color.scale.domain = spec.encoding.strokeDash.scale.domain = runs.map((run) => run.run);
        const [least, most] = [Math.min(...values.map((point) => point.y)), Math.max(...values.map((point) => point.y))];
        if (least === most) spec.encoding.y.scale.domain = least ? [least - Math.abs(least) / 4, least + Math.abs(least) / 4] : [-1, 1];
        if (over === "seconds") spec.mark.point = false;
        const figure = make("figure");
        const chart = make("div", "", { className: "chart" });
        chart.setAttribute("role", "img");
        chart.setAttribute("aria-label", name + " over " + title);
        figure.append(make("figcaption", name), chart);
        place.append(figure);
        draw(chart, spec);
        drawn += 1;
      }
    }
    if (!drawn) place.append(make("p", "Nothing was recorded of this run."));
  };

  if (night) {
    if ($("#stairs")) {
      drawStairs();
      all("input[name=over]").forEach((input) => input.addEventListener("change", drawStairs));
    }
    const once = (box, then) => {
      const opened = () => box.open && !box.dataset.done && ((box.dataset.done = "yes"), then(box));
      box.addEventListener("toggle", opened);
      opened();
    };
    all("[data-chart]").forEach((box) => once(box, () => draw($(".chart", box), fresh(box.dataset.chart))));
    all("[data-curves]").forEach((box) => once(box, curvesIn));
  } else if ($("#stairs")) {
    $("#stairs").replaceChildren(make("p", "The charts' JavaScript did not start.", { className: "note" }));
  }

  // --- the table of ideas ---
  const table = document.getElementById("all");
  const rows = table ? [...table.tBodies[0].rows] : [];
  const find = document.getElementById("find");
  const outcome = document.getElementById("outcome");
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !((!outcome.value || row.dataset.outcome === outcome.value) && words.every((word) => text.includes(word)));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("found").textContent = shown === rows.length ? "" : shown + " of " + rows.length;
  };
  const clearFilter = () => {
    find.value = outcome.value = "";
    filter();
  };
  const sortBy = (head) => {
    const key = head.dataset.by;
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = key !== "title" && key !== "outcome";
    const value = (row) => (key === "title" ? $(".title", row).textContent : key in row.dataset ? (numeric ? +row.dataset[key] : row.dataset[key]) : null);
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (down ? -1 : 1) * (numeric ? x - y : x.localeCompare(y)) || a.dataset.number - b.dataset.number;
    };
    table.tBodies[0].append(...rows.sort(order));
  };
  if (table) {
    find.addEventListener("input", filter);
    outcome.addEventListener("change", filter);
    for (const head of all("th[data-by]", table)) {
      const button = make("button", head.textContent, { type: "button" });
      head.replaceChildren(button);
      button.addEventListener("click", () => sortBy(head));
    }
    filter();
  }

  addEventListener("hashchange", arrive);
  arrive();
  addEventListener("beforeprint", () => all(".card > details.more:not([data-curves])").forEach((box) => (box.open = true)));
})();
