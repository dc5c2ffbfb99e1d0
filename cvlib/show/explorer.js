// Moves a sprite behind a window: one slider per axis, all in the page, no kernel and no network.
// Every element with this data-cv that is not yet alive is brought to life, so a copy of the output works too.
(() => {
  for (const root of document.querySelectorAll('[data-cv="$ID"]:not([data-alive])')) {
    root.dataset.alive = "1";
    const c = $CONFIG, image = root.querySelector("img"), note = root.querySelector(".cv-note");
    const sliders = [...root.querySelectorAll("input")], play = root.querySelector("button");
    const draw = () => {
      let at = 0;
      sliders.forEach((slider, i) => {
        const value = c.values[i][slider.value];
        at = at * c.values[i].length + Number(slider.value);
        slider.setAttribute("aria-valuetext", value);
        slider.parentElement.querySelector("output").textContent = value;
      });
      image.style.left = -100 * (at % c.columns) + "%";
      image.style.top = -100 * Math.floor(at / c.columns) + "%";
      if (note) note.textContent = c.notes[at];
    };
    for (const slider of sliders) {
      slider.addEventListener("input", draw);
      slider.addEventListener("pointerdown", () => stop());
      slider.addEventListener("keydown", event => event.key === "Tab" || stop());
    }
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      if (play) play.textContent = "Play";
    };
    const start = () => {
      timer = setInterval(() => {
        if (!root.isConnected) return stop();
        sliders[0].value = (Number(sliders[0].value) + 1) % c.values[0].length;
        draw();
      }, c.interval);
      play.textContent = "Pause";
    };
    if (play) play.addEventListener("click", () => timer ? stop() : start());
    root.querySelector(".cv-controls").hidden = false;
    draw();
    if (c.autoplay && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
  }
})();
