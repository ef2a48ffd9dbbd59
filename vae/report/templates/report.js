// Latent map: show the image under the pointer or at the arrow keys; show one class alone.
const map = document.querySelector(".map");
const stage = map.querySelector(".stage");
const dots = [...map.querySelectorAll("circle")];
const card = map.querySelector(".card");
const tile = card.querySelector(".tile");
const said = map.querySelector(".said");
const { columns, rows } = map.dataset;
const at = dots.map((dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]);
const [, , width, height] = stage.querySelector("svg").getAttribute("viewBox").split(" ").map(Number);
let shown = -1;
let only = null;

const visible = (i) => only === null || dots[i].dataset.group === only;

function show(i) {
  dots[shown]?.classList.remove("on");
  shown = i;
  card.hidden = i < 0;
  if (i < 0) return;
  dots[i].classList.add("on");
  dots[i].parentNode.append(dots[i]); // above the others
  const [column, row] = dots[i].dataset.tile.split(" ");
  tile.style.backgroundPosition = `${(100 * column) / (columns - 1 || 1)}% ${(100 * row) / (rows - 1 || 1)}%`;
  said.textContent = card.querySelector(".text").textContent = dots[i].dataset.text;
  const [x, y] = at[i];
  card.style.left = `${(100 * x) / width}%`;
  card.style.top = `${(100 * y) / height}%`;
  card.style.transform = `translate(${x > width / 2 ? "calc(-100% - 12px)" : "12px"}, ${y > height / 2 ? "-100%" : "0"})`;
}

// The nearest dot for which `fits(dx, dy)` holds, within `reach`.
function nearest(x, y, reach, fits) {
  let best = -1;
  let least = reach ** 2;
  at.forEach(([u, v], i) => {
    const distance = (u - x) ** 2 + (v - y) ** 2;
    if (distance < least && visible(i) && fits(u - x, v - y)) [best, least] = [i, distance];
  });
  return best;
}

function under(event) {
  const box = stage.getBoundingClientRect();
  const scale = width / box.width;
  show(nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale, 24 * scale, () => true));
}
stage.addEventListener("pointermove", under);
stage.addEventListener("pointerdown", under);
stage.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(-1));

const directions = {
  ArrowRight: (dx, dy) => dx > 0 && Math.abs(dy) <= dx,
  ArrowLeft: (dx, dy) => dx < 0 && Math.abs(dy) <= -dx,
  ArrowDown: (dx, dy) => dy > 0 && Math.abs(dx) <= dy,
  ArrowUp: (dx, dy) => dy < 0 && Math.abs(dx) <= -dy,
};
stage.addEventListener("keydown", (event) => {
  if (event.key === "Escape") show(-1);
  const fits = directions[event.key];
  if (!fits) return;
  event.preventDefault();
  const start = shown < 0 ? [width / 2, height / 2] : at[shown];
  const next = nearest(...start, Infinity, shown < 0 ? () => true : fits);
  if (next >= 0) show(next);
});
stage.addEventListener("blur", () => show(-1));

const legend = [...map.querySelectorAll("button")];
for (const button of legend) {
  button.disabled = false;
  button.addEventListener("click", () => {
    only = only === button.value ? null : button.value;
    legend.forEach((other) => other.setAttribute("aria-pressed", other.value === only));
    dots.forEach((dot, i) => dot.classList.toggle("off", !visible(i)));
    if (shown >= 0 && !visible(shown)) show(-1);
  });
}

stage.tabIndex = 0;
stage.setAttribute("role", "application");
map.querySelector(".hint").hidden = false;

// Rate–distortion curve: a slider moves along it; the numbers and the nearest row of pictures follow.
const curve = document.querySelector(".curve");
if (curve) {
  const stops = JSON.parse(curve.dataset.stops);
  const here = curve.querySelector(".here");
  const along = curve.querySelector(".along");
  const slider = along.querySelector("input");
  const numbers = [...along.querySelectorAll("dd")];
  const nearestRows = along.querySelector(".nearest");
  const strips = [...document.querySelectorAll(".pilot li")];
  const move = () => {
    const stop = stops[slider.value];
    numbers.forEach((number, i) => (number.textContent = stop[i]));
    const [x, y, row] = stop.slice(numbers.length);
    here.style.left = `${x}%`;
    here.style.top = `${y}%`;
    slider.setAttribute("aria-valuetext", `KL weight ${stop[0]}: ${stop[2]} nats, ${stop[3]}`);
    if (row < 0) return;
    const chosen = strips[row + 1]; // after the originals
    strips.forEach((strip) => strip.classList.toggle("on", strip === chosen));
    nearestRows.replaceChildren(strips[0].cloneNode(true), chosen.cloneNode(true));
  };
  slider.addEventListener("input", move);
  along.hidden = here.hidden = false;
  move();
}
