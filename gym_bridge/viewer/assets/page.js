"use strict";
// Keys, and the page as it is now: when a file has grown, the same address is fetched again and its content put in place.

const LOOK_EVERY_MS = 2000;
const main = () => document.getElementById("main");
const rows = () => [...document.querySelectorAll("tr[data-row]")];

function isTyping(target) {
  return target.closest("input:not([type=checkbox]), select, textarea, dialog[open]") !== null;
}

function move(by) {
  const all = rows();
  const next = all[Math.max(0, Math.min(all.length - 1, all.indexOf(document.activeElement.closest("tr[data-row]")) + by))];
  if (next) {
    next.tabIndex = -1;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

function onKey(event) {
  if (event.key === "Escape" && isTyping(event.target)) {
    event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) {
    return;
  }
  const row = document.activeElement.closest("tr[data-row]");
  if (event.key === "j" || event.key === "k") {
    move(event.key === "j" ? 1 : -1);
  } else if (event.key === "Enter" && row === document.activeElement && row?.querySelector("a.open")) {
    row.querySelector("a.open").click();
  } else if (event.key === "x" && row?.querySelector("input[type=checkbox]")) {
    row.querySelector("input[type=checkbox]").click();
  } else {
    const found = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
    if (!found) {
      return;
    }
    if (found.matches("input")) {
      found.focus();
      found.select();
    } else {
      found.click();
    }
  }
  event.preventDefault();
}

// A reader who has begun something, in a form or by ticking, is not disturbed.
function isBusy() {
  const active = document.activeElement;
  const selected = document.getSelection();
  return (
    active?.closest("#main form input:not([type=checkbox]), #main form select") ||
    [...document.querySelectorAll("#main form input, #main form select")].some(isChanged) ||
    document.querySelector("#main input[name]:checked, dialog[open]") !== null ||
    (selected !== null && !selected.isCollapsed)
  );
}

function isChanged(field) {
  return field.matches("select") ? [...field.options].some((one) => one.selected !== one.defaultSelected && one.index > 0) : field.value !== field.defaultValue;
}

async function renew() {
  const reply = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!reply.ok) {
    return;
  }
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("main");
  const open = [...document.querySelectorAll("#main details")].map((one) => one.open);
  const focused = document.activeElement.matches("tr[data-row]") ? document.activeElement.querySelector("a.open")?.href : null;
  main().replaceWith(fresh);
  document.querySelectorAll("#main details").forEach((one, place) => (one.open = open[place] ?? false));
  const row = focused && rows().find((one) => one.querySelector("a.open")?.href === focused);
  if (row) {
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
  }
}

async function look() {
  const live = document.getElementById("live");
  try {
    const { version } = await (await fetch("/version")).json();
    const stale = version !== main().dataset.version;
    live.textContent = stale && isBusy() ? "there is more: reload" : "live";
    if (stale && !isBusy()) {
      await renew();
    }
  } catch {
    live.textContent = "gym-bridge view has ended";
  }
  setTimeout(look, LOOK_EVERY_MS);
}

const narrow = matchMedia("(max-width: 720px)").matches;
document.querySelectorAll("details.filter-box").forEach((one) => (one.open = !narrow));
document.addEventListener("keydown", onKey);
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
setTimeout(look, LOOK_EVERY_MS);
