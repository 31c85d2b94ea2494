// Keeps the overview fresh. Every page works without it.
"use strict";
(() => {
  const goOn = document.getElementById("go-on");
  if (goOn) { location.replace(goOn.href); return; }
  const live = document.getElementById("live");
  if (!live) return;
  const pause = document.getElementById("pause"), trend = document.getElementById("trend");
  const line = document.getElementById("trend-line"), title = document.getElementById("trend-t"), most = document.getElementById("trend-max");
  const rates = [], kept = 150;
  let paused = false;
  pause.hidden = trend.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    if (!paused) refresh();
  });
  function draw() {
    const rate = Number(live.firstElementChild?.dataset.rate);
    if (Number.isNaN(rate)) return;
    rates.push(rate);
    if (rates.length > kept) rates.shift();
    const top = Math.max(1, ...rates);
    line.setAttribute("points", rates.map((r, i) => `${600 - (rates.length - 1 - i) * (600 / (kept - 1))},${85 - 80 * r / top}`).join(" "));
    title.textContent = `Now ${rate} certificates per second, at most ${top}`;
    most.textContent = `at most ${top} per second`;
  }
  async function refresh() {
    // Who reads or moves about in the figures is not disturbed.
    if (paused || document.hidden || live.contains(document.activeElement)) return;
    try {
      const answer = await fetch("/live", { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(String(answer.status));
      live.innerHTML = await answer.text();
      live.classList.remove("stale");
      draw();
    } catch {
      live.classList.add("stale");
    }
  }
  draw();
  setInterval(refresh, 2000);
})();
