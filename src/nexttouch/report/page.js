"use strict";
const path = JSON.parse(document.getElementById("path").textContent);
const states = [path.start];
for (const step of path.steps)
  states.push({...states.at(-1), ...Object.fromEntries(step.changes.map(([field, , after]) => [field, after]))});
const [slider, drawing, now] = ["slider", "drawing", "now"].map(id => document.getElementById(id));
const rows = [...document.querySelectorAll(".step")];
const last = path.steps.length;
let current = -1, state, changed, used, arrows;

function el(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children.filter(child => child !== null));
  return made;
}
function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text);
  return made;
}
// A field's text now; the caller draws it.
function take(field) { used.add(field); return state[field]; }
function mark(field) { return changed.has(field) ? " changed" : ""; }
function numbers(pattern) {
  const found = Object.keys(state).map(field => field.match(pattern)).filter(Boolean).map(match => match[1]);
  return [...new Set(found)];
}
function tone(text) { const found = text.match(/^thread (\d+)(?: writes)?$/); return found ? " t" + found[1] % 4 : ""; }
// A value; if the step changed it, what it was before too.
function value(field) {
  const text = take(field), before = changed.get(field);
  const shown = el("span", "value" + mark(field));
  if (before !== undefined && before !== "-") shown.append(el("s", "", before));
  const free = text === "-" ? "\u2013" : text;
  shown.append(tone(text) ? el("span", "held" + tone(text), free) : free);
  return shown;
}
function pair(key, field) {
  return el("span", "pair", el("span", "key", key), el("b", mark(field).trim(), take(field)));
}
function row(key, field) {
  if (!(field in state)) return null;
  return el("div", "row", el("span", "key", key), value(field));
}
function bits(text, names) {
  return [...names].map(name => el("span", "bit" + (text.split(" ").includes(name) ? " on" : ""), name));
}
function point(from, text, kind) {
  const found = text.match(/frame (\d+)/);
  if (found) arrows.push({from, frame: found[1], kind});
}

function thread(number) {
  const step = current ? path.steps[current - 1] : null, on = step !== null && step.thread === number;
  const [who, script] = path.threads[number].split(": ");
  // A step belongs to the operation that the thread was in before it.
  const after = current - on, doing = after ? path.steps[after - 1].threads[number] : (script || "").split(", ")[0];
  const card = el("div", `card thread t${number % 4}${on ? " on" : ""}`, el("h3", "", "thread " + number),
    el("p", "quiet", who.split(", ").slice(1).join(", ")), el("p", "doing", doing),
    el("p", "doing step-name", on ? step.name : ""));
  for (const field of Object.keys(state)) {
    const found = field.match(/^TLB of CPU (\d+), (.*)$/);
    if (!found || +found[1] !== number) continue;
    const text = take(field), target = text.match(/^frame \d+/);
    const entry = el("div", "row entry" + mark(field), el("span", "key", `TLB ${found[2]}`),
      ...(target ? [target[0], ...bits(text, "WD")] : ["\u2013"]));
    if (changed.has(field)) entry.title = "before: " + changed.get(field);
    point(entry, text, `t${number % 4}`);
    card.append(entry);
  }
  return card;
}

function tags(field) {
  const split = text => text.split(/[;,]? +|; /).filter(Boolean);
  const kind = text => text.split(";")[0].split(", ").filter(Boolean);
  const all = text => text === "free" ? [] : [...kind(text), ...split(text.split(";")[1] || "")];
  const after = all(take(field)), before = changed.has(field) ? all(changed.get(field)) : after;
  return el("div", "tags",
    ...after.map(name => el("span", "tag" + (before.includes(name) ? "" : " changed"), name)),
    ...before.filter(name => !after.includes(name)).map(name => el("span", "tag changed gone", name)));
}
function frame(number) {
  const at = name => `frame ${number} ${name}`;
  const free = state[at("state")] === "free", lock = take(at("page lock")) || "-";
  const card = el("div", "card frame" + (free ? " free" : ""));
  card.dataset.frame = number;
  const held = lock === "-" ? changed.has(at("page lock")) && !free ? el("span", "changed", "unlocked") : ""
    : el("span", "held" + tone(lock) + mark(at("page lock")), "locked by " + lock);
  const head = el("h3", "", "frame " + number, el("span", "quiet", held));
  used.add(at("node"));
  if (free) {
    ["state", "refcount", "mapcount", "contents"].forEach(name => used.add(at(name)));
    head.lastChild.append(el("span", mark(at("state")).trim(), "free"));
    card.append(head);
    return card;
  }
  const words = take(at("contents")), before = (changed.get(at("contents")) || words).split(" ");
  card.append(head, el("div", "row", ...words.split(" ").map((word, index) =>
    el("span", "word" + (word === before[index] ? "" : " changed"), word)),
    pair("refcount", at("refcount")), pair("mapcount", at("mapcount"))), tags(at("state")));
  return card;
}
function memory() {
  const all = numbers(/^frame (\d+) /), nodes = numbers(/^frame (\d+) node$/).length;
  if (!nodes) return all.map(frame);
  const names = [...new Set(all.map(number => state[`frame ${number} node`]))];
  return names.map(name => el("div", "node", el("p", "name", "node " + name),
    ...all.filter(number => state[`frame ${number} node`] === name).map(frame)));
}

function entry(mm, va) {
  const field = `page table ${mm}:${va}`, area = `area ${mm}:${va}`, text = take(field);
  const found = text.match(/^(.*) ((?:frame|slot|id) \d+)(.*)$/);
  const made = el("div", "row entry" + mark(field)), maps = /present$/.test(found?.[1]);
  const shown = [..."WAD"].filter(name => maps || found?.[3].includes(name));
  if (found) made.append(el("span", "key", found[1]), el("b", "", found[2]), ...bits(found[3], shown));
  else made.append(el("span", "key", text === "-" ? "\u2013" : text));
  if (changed.has(field)) made.title = "before: " + changed.get(field);
  const kinds = {present: "", "valid, not present": "valid", migration: "migration"};
  if (found && found[1] in kinds) point(made, found[2], kinds[found[1]]);
  const where = el("div", "where", "address " + va);
  if (area in state) where.append(el("span", mark(area).trim(), "area " + take(area)));
  return el("div", "", where, made);
}
function space(mm) {
  const card = el("div", "card", el("h3", "", "address space " + mm));
  card.dataset.space = mm;
  const places = Object.keys(state).map(field => field.match(/^page table (\d+):(.*)$/)).filter(Boolean);
  card.append(...places.filter(place => place[1] === mm).map(place => entry(mm, place[2])));
  for (const [key, field] of [["mmap_sem", "mmap_sem"], ["page table lock", "page table lock"], ["rss", "rss"]]) {
    const made = row(key, `${field} ${mm}`);
    if (made) card.append(made);
  }
  return card;
}
function caches() {
  const card = el("div", "card");
  for (const field of ["page cache", ...numbers(/^(slot \d+)$/)]) {
    const made = row(field, field);
    if (!made) continue;
    made.classList.add("entry");
    card.append(made);
    point(made, state[field], "cache");
  }
  const lock = row("rmap lock", "rmap lock");
  if (lock) card.append(lock);
  return card;
}
function others() {
  const card = el("div", "card");
  for (const field of Object.keys(state)) if (!used.has(field)) card.append(row(field, field));
  return card;
}

// Arrows run in the gaps between the columns; those to one frame arrive one below the other.
function connect() {
  drawing.querySelector("svg")?.remove();
  const svg = shape("svg", {"aria-hidden": "true"}), origin = drawing.getBoundingClientRect();
  const ends = arrows.map(arrow => {
    const from = arrow.from.getBoundingClientRect();
    const to = drawing.querySelector(`[data-frame="${arrow.frame}"]`)?.getBoundingClientRect();
    if (!to) return null;
    const right = from.left < to.left, x = (right ? from.right : from.left) - origin.left;
    const y = from.top + from.height / 2 - origin.top, end = (right ? to.left : to.right) - origin.left;
    return {arrow, to, right, x, y, end};
  }).filter(Boolean);
  for (const end of ends) {
    const beside = ends.filter(other => other.arrow.frame === end.arrow.frame && other.right === end.right);
    beside.sort((one, other) => one.y - other.y);
    const share = (beside.indexOf(end) + 1) / (beside.length + 1), way = end.right ? 1 : -1;
    const y = end.to.top + end.to.height * share - origin.top, tip = end.end - 2 * way, neck = tip - 8 * way;
    const bend = (neck - end.x) * .55;
    const line = `M${end.x} ${end.y}C${end.x + bend} ${end.y} ${neck - bend} ${y} ${neck} ${y}`;
    svg.append(shape("path", {d: line, class: "line " + end.arrow.kind}),
      shape("path", {d: `M${neck} ${y - 4.5}L${tip} ${y}L${neck} ${y + 4.5}Z`, class: "head " + end.arrow.kind}));
  }
  drawing.append(svg);
}

function draw() {
  state = states[current];
  changed = new Map(current ? path.steps[current - 1].changes.map(([field, before]) => [field, before]) : []);
  [used, arrows] = [new Set(), []];
  const column = (name, cards) => el("div", "column", el("h2", "", name), ...cards);
  const columns = [column("Threads, a CPU each", path.threads.map((_, number) => thread(number))),
    column("Memory", memory()),
    column("Page tables, caches, locks", [...numbers(/^page table (\d+):/).map(space), caches()])];
  columns[2].append(others());
  columns[2].querySelectorAll(".card:empty").forEach(card => card.remove());
  drawing.replaceChildren(...columns);
  if (path.violation && current === last)
    for (const [pattern, name] of [[/frame (\d+)/g, "frame"], [/address space (\d+)/g, "space"]])
      for (const found of path.violation.sentence.matchAll(pattern))
        drawing.querySelector(`[data-${name}="${found[1]}"]`)?.classList.add("bad");
  connect();
}

function show(step) {
  step = Math.max(0, Math.min(last, step));
  if (step === current) return;
  current = step;
  const taken = current ? path.steps[current - 1] : null;
  slider.value = current;
  document.getElementById("previous").disabled = !current;
  document.getElementById("next").disabled = current === last;
  now.replaceChildren(`${current} of ${last}: `, ...(taken
    ? [el("b", "t" + taken.thread % 4, "thread " + taken.thread), ", " + taken.name] : ["the start"]));
  slider.setAttribute("aria-valuetext", now.textContent);
  if (path.violation && current === last) now.append(el("span", "mark", "breaks " + path.violation.invariant));
  rows.forEach((one, number) => number === current ? one.setAttribute("aria-current", "step")
    : one.removeAttribute("aria-current"));
  const box = document.getElementById("lanes");
  const [at, seen] = [rows[current], box].map(one => one.getBoundingClientRect());
  if (at.top < seen.top || at.bottom > seen.bottom) box.scrollTop += at.top - seen.top - (seen.height - at.height) / 2;
  try { history.replaceState(null, "", "#step=" + current); } catch { /* a page without an address */ }
  draw();
}
function fromAddress() { show(+(location.hash.match(/step=(\d+)/) || [0, 0])[1]); }

slider.addEventListener("input", () => show(+slider.value));
document.getElementById("previous").addEventListener("click", () => show(current - 1));
document.getElementById("next").addEventListener("click", () => show(current + 1));
rows.forEach((one, number) => one.addEventListener("click", () => show(number)));
document.addEventListener("keydown", event => {
  const to = {ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last}[event.key];
  if (to === undefined || event.target === slider || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  show(to);
});
addEventListener("hashchange", fromAddress);
addEventListener("resize", connect);
fromAddress();
