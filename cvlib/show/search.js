// A search box over precomputed answers: every picture lies in one sprite, no kernel and no network.
(() => {
  for (const root of document.querySelectorAll('[data-cv="$ID"]:not([data-alive])')) {
    root.dataset.alive = "1";
    const c = $CONFIG, box = root.querySelector("input"), out = root.querySelector(".cv-answers");
    const say = root.querySelector(".cv-said"), sprite = root.querySelector("img").src;
    const tile = (at, state) => {
      const cell = document.createElement("div");
      cell.setAttribute("style", `flex:0 1 ${c.size}px;aspect-ratio:1;border-radius:4px;background:url(${sprite}) ` +
        `${100 * (at % c.columns) / Math.max(1, c.columns - 1)}% ${100 * Math.floor(at / c.columns) / Math.max(1, c.rows - 1)}% ` +
        `/ ${100 * c.columns}% ${100 * c.rows}%;outline:3px ${state === 1 ? "solid #006B4A" : state === 0 ? "dotted #949494" : "none"}`);
      return cell;
    };
    const draw = q => {
      const lines = [];
      c.names.forEach((name, a) => {
        const line = document.createElement("div"), label = document.createElement("div");
        line.setAttribute("style", "display:flex;gap:8px;align-items:center;margin:8px 4px");
        label.setAttribute("style", "flex:0 0 5.5em;font-size:12px");
        label.textContent = name;
        line.append(label, tile(c.queries[q][1], 2));
        for (const [at, right] of c.answers[a][q]) line.append(tile(at, right));
        lines.push(line);
      });
      out.replaceChildren(...lines);
      const counts = c.names.map((name, a) => `${name} ${c.answers[a][q].filter(x => x[1]).length}`);
      say.textContent = `${c.queries[q][0]}: right answers among the first ${c.answers[0][q].length}: ${counts.join(", ")}`;
    };
    const find = () => {
      const text = box.value.trim().toLowerCase();
      const names = c.queries.map(q => q[0].toLowerCase());
      let q = names.indexOf(text);
      if (q < 0 && text) q = names.findIndex(name => name.includes(text));
      if (q >= 0) draw(q);
      else say.textContent = text ? `nothing here is called "${box.value}"` : "type a name, or choose one from the list";
    };
    box.addEventListener("input", find);
    root.querySelector("button").addEventListener("click", () => {
      const q = Math.floor(Math.random() * c.queries.length);
      box.value = c.queries[q][0];
      draw(q);
    });
    root.querySelector(".cv-controls").hidden = false;
    draw(0);
  }
})();
