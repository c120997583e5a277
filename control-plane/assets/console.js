// Keeps the page as the server would show it now: listens for changes, fetches the same page, and changes what differs.
// Without it the page is whole, and reloads itself.
"use strict";

const PAUSE_MS = 250; // at most four copies a second, and as much rest as work for a large fleet
const RETRY_MS = 3000;
const live = document.getElementById("live");
const light = document.getElementById("stream");
let source = null;
let fetching = false;
let stale = false;
let retry = 0;

function show(state, text) {
  light.hidden = false;
  if (light.className !== `stream ${state}`) {
    light.className = `stream ${state}`;
    light.textContent = text;
  }
}

function concerns(change) {
  if (change === "all") return true;
  return live.dataset.watch.split(" ").some((word) => change === word || change.startsWith(`${word}:`));
}

function connect() {
  clearTimeout(retry);
  if (source) source.close();
  if (document.hidden) return;
  source = new EventSource("/console/events");
  source.onopen = () => show("on", "Live");
  source.onmessage = (event) => {
    if (concerns(event.data)) refresh();
  };
  source.onerror = () => {
    show("off", "Not live");
    // The browser tries again by itself, unless the answer was no stream: then the session may be over.
    if (source.readyState === EventSource.CLOSED) {
      retry = setTimeout(() => { refresh(); connect(); }, RETRY_MS);
    }
  };
}

async function refresh() {
  if (fetching) {
    stale = true;
    return;
  }
  fetching = true;
  stale = false;
  const begun = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
    if (answer.redirected) {
      location.assign(answer.url);
      return;
    }
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = fresh.getElementById("live");
      if (main) {
        morph(live, main);
        tick();
      }
    }
  } catch {
    stale = true; // the stream's own failure shows in the light, and its return refreshes
  }
  await new Promise((done) => setTimeout(done, Math.max(PAUSE_MS, performance.now() - begun)));
  fetching = false;
  if (stale && source && source.readyState === EventSource.OPEN) refresh();
}

// Makes `old` like `fresh` and keeps every node that need not change: focus, selection and scroll stay.
function morph(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  // What a person has typed is theirs.
  if (old.nodeName === "INPUT") return;
  const keyed = new Map();
  for (const child of old.children) {
    if (child.dataset.key) keyed.set(child.dataset.key, child);
  }
  let next = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = wanted.dataset && wanted.dataset.key;
    const same = key ? keyed.get(key) : next && !(next.dataset && next.dataset.key) ? next : null;
    if (!same || same.nodeName !== wanted.nodeName) {
      old.insertBefore(document.importNode(wanted, true), next);
      continue;
    }
    if (same !== next) old.insertBefore(same, next);
    else next = next.nextSibling;
    if (same.nodeType === Node.ELEMENT_NODE) morph(same, wanted);
    else if (same.data !== wanted.data) same.data = wanted.data;
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

// Times grow older while nothing happens. The server's clock counts, not this machine's.
let ahead = 0;
function ago(ms) {
  const s = Math.max(0, Math.floor((Date.now() - ahead - ms) / 1000));
  if (s < 2) return "now";
  if (s < 120) return `${s} s ago`;
  if (s < 7200) return `${Math.floor(s / 60)} min ago`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} days ago`;
}

let clock = "";
function tick() {
  if (clock !== live.dataset.now) {
    clock = live.dataset.now;
    ahead = Date.now() - Number(clock);
  }
  for (const time of live.querySelectorAll("time[data-ms]")) {
    const text = ago(Number(time.dataset.ms));
    if (time.textContent !== text) time.textContent = text;
  }
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  // A hidden page costs nothing: browsers allow few connections to one server.
  if (document.hidden) {
    clearTimeout(retry);
    if (source) source.close();
  } else connect();
});

tick();
setInterval(tick, 1000);
connect();
