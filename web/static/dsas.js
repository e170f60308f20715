// Follows the fleet: when the server says that something happened, the live
// part of the page is fetched anew. What the operator has chosen or typed
// meanwhile stays.
"use strict";
(() => {
  const live = document.getElementById("live"), pulse = document.getElementById("pulse");
  if (!live) return;

  const chosenText = () => {
    const boxes = [...live.querySelectorAll("input[name=node][type=checkbox]")];
    const n = boxes.filter((b) => b.checked).length, text = document.getElementById("chosen"), all = document.getElementById("all");
    if (text) text.textContent = n === 0 ? "none chosen" : n + " chosen";
    if (all) { all.checked = n > 0 && n === boxes.length; all.indeterminate = n > 0 && n < boxes.length; }
  };
  const key = (e) => (e.closest("form")?.getAttribute("action") ?? "") + "|" + e.name + "|" + (e.type === "checkbox" ? e.value : "");
  const keep = () => {
    const m = new Map();
    for (const e of live.querySelectorAll("input, select")) if (e.type !== "hidden" && e.name) m.set(key(e), e.type === "checkbox" ? e.checked : e.value);
    const open = [...live.querySelectorAll("details")].map((d) => d.open);
    return { m, open, focus: document.activeElement?.name ? key(document.activeElement) : null };
  };
  const restore = ({ m, open, focus }) => {
    for (const e of live.querySelectorAll("input, select")) {
      if (e.type === "hidden" || !m.has(key(e))) continue;
      if (e.type === "checkbox") e.checked = m.get(key(e)); else e.value = m.get(key(e));
      if (focus === key(e)) e.focus();
    }
    [...live.querySelectorAll("details")].forEach((d, i) => { d.open = open[i] ?? false; });
    chosenText();
  };

  live.addEventListener("change", (ev) => {
    if (ev.target.id === "all") for (const b of live.querySelectorAll("input[name=node][type=checkbox]")) b.checked = ev.target.checked;
    chosenText();
  });

  let busy = false, again = false;
  const refresh = async () => {
    // An open drop-down would close under the operator's hand.
    if (busy || document.activeElement?.tagName === "SELECT") { again = true; return; }
    busy = true; again = false;
    try {
      const resp = await fetch(live.dataset.path, { headers: { "Dsas-Part": "live" } });
      if (resp.status === 401 || resp.redirected) { location.reload(); return; }
      if (resp.ok) {
        const html = await resp.text();
        if (document.activeElement?.tagName === "SELECT") { again = true; return; }
        const kept = keep(); live.innerHTML = html; restore(kept);
      }
    } catch { /* the server is away: the event source says so and tries again */ }
    finally { busy = false; setTimeout(() => { if (again) refresh(); }, 400); }
  };
  let timer = null;
  const soon = () => { timer ??= setTimeout(() => { timer = null; refresh(); }, 150); };

  const source = new EventSource("/live");
  source.onopen = () => { pulse?.classList.remove("off"); soon(); };
  source.onerror = () => pulse?.classList.add("off");
  source.onmessage = soon;
  chosenText();
})();
